// Threads, garbage for the collector and a big map; the last line is the same for every undisturbed run.
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import java.util.TreeMap;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;

public class Work {
    static final int STEPS = 20;
    static final int THREADS = 4;
    static final ConcurrentHashMap<String, Long> table = new ConcurrentHashMap<>();

    static byte[] task(int step, int thread) throws Exception {
        MessageDigest digest = MessageDigest.getInstance("SHA-256");
        List<byte[]> kept = new ArrayList<>();
        for (int round = 0; round < 15000; round++) {
            byte[] garbage = new byte[1024 + (round * 31 + thread) % 1024];
            garbage[round % garbage.length] = (byte) step;
            digest.update(garbage);
            if (round % 100 == 0) kept.add(garbage);
            table.merge(thread + "-" + (step * 7 + round) % 30000, (long) round, Long::sum);
        }
        for (byte[] block : kept) digest.update(block);
        return digest.digest();
    }

    public static void main(String[] arguments) throws Exception {
        ExecutorService pool = Executors.newFixedThreadPool(THREADS);
        MessageDigest total = MessageDigest.getInstance("SHA-256");
        System.out.println("ready");
        for (int step = 1; step <= STEPS; step++) {
            List<Future<byte[]>> results = new ArrayList<>();
            for (int thread = 0; thread < THREADS; thread++) {
                int now = step, number = thread;
                results.add(pool.submit(() -> task(now, number)));
            }
            for (Future<byte[]> result : results) total.update(result.get());
            Thread.sleep(20);
            System.out.println("step " + step);
        }
        // Not at its end before it was killed as often as it is to be.
        while (!Files.exists(Path.of("finish"))) Thread.sleep(10);
        pool.shutdown();
        for (var entry : new TreeMap<>(table).entrySet())
            total.update((entry.getKey() + "=" + entry.getValue()).getBytes());
        System.out.println("result " + HexFormat.of().formatHex(total.digest()) + " " + table.size());
    }
}
