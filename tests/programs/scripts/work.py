"""Threads, a big dict, hashlib and open files; the last line is the same for every undisturbed run."""
import hashlib
import os
import threading
import time

STEPS = 20
THREADS = 4

table = {}
digests = [hashlib.sha256(str(number).encode()) for number in range(THREADS)]
barrier = threading.Barrier(THREADS + 1)
lock = threading.RLock()
with open("input.txt", "w") as made:
    made.writelines(f"line {number} {number * 7919 % 10007}\n" for number in range(STEPS * 1000))
source = open("input.txt")
log = open("log.txt", "w+b", buffering=0)


def work(number):
    for step in range(STEPS):
        for item in range(20000):
            key = f"{number}-{(step * 31 + item) % 60000}"
            with lock:
                table[key] = table.get(key, 0) + item
        digests[number].update(b"%d" % step * 200000)
        barrier.wait()


threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
for thread in threads:
    thread.start()
print("ready", flush=True)
total = hashlib.blake2b()
for step in range(1, STEPS + 1):
    barrier.wait()
    for _ in range(1000):
        total.update(source.readline().encode())
    log.write(b"step %d at %d\n" % (step, source.tell()))
    print("step", step, flush=True)
# Not at its end before it was killed as often as it is to be.
while not os.path.exists("finish"):
    time.sleep(0.01)
for thread in threads:
    thread.join()
log.seek(0)
total.update(log.read())
for digest in digests:
    total.update(digest.digest())
for key in sorted(table):
    total.update(f"{key}={table[key]}".encode())
print("result", total.hexdigest(), len(table), flush=True)
