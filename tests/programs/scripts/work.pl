# Hashes, regular expressions, closures and open files; the last line is the same for every undisturbed run.
use strict;
use warnings;
use Digest::SHA;

$| = 1;
my $steps = 20;
open(my $made, '>', 'input.txt') or die "input.txt: $!";
print {$made} "name$_ = ", ($_ * 7919) % 10007, "\n" for 0 .. $steps * 20000 - 1;
close($made) or die "input.txt: $!";
open(my $source, '<', 'input.txt') or die "input.txt: $!";
open(my $log, '+>', 'log.txt') or die "log.txt: $!";

my (%table, @order);
my $digest = Digest::SHA->new(256);
my $count = do { my $calls = 0; sub { return ++$calls } };
print "ready\n";
for my $step (1 .. $steps) {
    for (1 .. 20000) {
        my $line = <$source>;
        $line =~ /^name(\d+) = (\d+)$/ or die "line $.: $line";
        $table{ $2 % 997 } .= chr(97 + $1 % 26);
        push @order, $1 * $count->();
        $digest->add(join ',', @order[ -10 .. -1 ]) if @order >= 10;
    }
    @order = reverse sort { $a <=> $b } @order;
    print {$log} "step $step: line $.\n";
    print "step $step\n";
}
# Not at its end before it was killed as often as it is to be.
select(undef, undef, undef, 0.01) until -e 'finish';
seek($log, 0, 0) or die "log.txt: $!";
$digest->add(<$log>);
$digest->add("$_=$table{$_}") for sort keys %table;
print 'result ', $digest->hexdigest, ' ', $count->(), "\n";
