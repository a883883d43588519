// Advice on mappings, as VmFlags in /proc/self/smaps tells; and the name given to an anonymous mapping.
#include "maps.h"
#include <linux/prctl.h>
#include <sys/prctl.h>

static const struct {
    int advice;
    const char *name;
    const char *flag;
} all[] = {
    {MADV_NORMAL, "NORMAL", "ac"},           {MADV_HUGEPAGE, "HUGEPAGE", "hg"},
    {MADV_NOHUGEPAGE, "NOHUGEPAGE", "nh"},   {MADV_DONTFORK, "DONTFORK", "dc"},
    {MADV_DONTDUMP, "DONTDUMP", "dd"},       {MADV_WIPEONFORK, "WIPEONFORK", "wf"},
    {MADV_MERGEABLE, "MERGEABLE", "mg"},     {MADV_SEQUENTIAL, "SEQUENTIAL", "sr"},
    {MADV_RANDOM, "RANDOM", "rr"},
};
enum { COUNT = sizeof all / sizeof *all, SIZE = 4 << 20 };

int main(void) {
    char *ranges[COUNT], before[COUNT][256], after[256];
    bool known[COUNT];
    for (int i = 0; i < COUNT; i++) {
        // Room between, so that no two are merged.
        ranges[i] = map(SIZE + 2 * PAGE, PROT_NONE, 0) + PAGE;
        REQUIRE(mprotect(ranges[i], SIZE, PROT_READ | PROT_WRITE) == 0);
        known[i] = madvise(ranges[i], SIZE, all[i].advice) == 0;
        fill_memory(ranges[i], 8 * PAGE, i);
        smaps_field(ranges[i], "VmFlags:", before[i], sizeof before[i]);
        REQUIRE(!known[i] || strstr(before[i], all[i].flag));
    }
    prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, ranges[0], SIZE, "stasis test");

    until_go();
    if (loses("advice"))
        madvise(ranges[4], SIZE, MADV_DODUMP);
    if (loses("huge-page-advice"))
        madvise(ranges[1], SIZE, MADV_NOHUGEPAGE);
    for (int i = 0; i < COUNT; i++) {
        smaps_field(ranges[i], "VmFlags:", after, sizeof after);
        // Write tracking shows as `uw` or `um`, and is not the program's business.
        CHECK(!known[i] || strstr(after, all[i].flag), "MADV_%s: VmFlags were%s and are%s", all[i].name, before[i], after);
        for (int other = 1; other < COUNT; other++)
            CHECK(other == i || !strstr(after, all[other].flag) || strstr(before[i], all[other].flag),
                  "MADV_%s: VmFlags were%s and are%s", all[i].name, before[i], after);
        CHECK(filled(ranges[i], 8 * PAGE, i), "the content of the range with MADV_%s changed", all[i].name);
    }
    return verdict();
}
