# Three processes square numbers that come through one queue and go through another; a total is kept in memory that all
# share, under a lock.
import multiprocessing, os, time

def square(numbers, squares, total):
    for n in iter(numbers.get, None):
        time.sleep(0.002)
        with total.get_lock():
            total.value += n * n
        squares.put((n, n * n))

if __name__ == "__main__":
    numbers, squares = multiprocessing.Queue(), multiprocessing.Queue()
    total = multiprocessing.Value("q", 0)
    workers = [multiprocessing.Process(target=square, args=(numbers, squares, total)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for step in range(20):
        for n in range(30):
            numbers.put(step * 100 + n)
        got = sorted(squares.get() for _ in range(30))
        assert [n for n, _ in got] == [step * 100 + n for n in range(30)], got
        print(sum(square for _, square in got))
        print("step", step, flush=True)
    # Not at its end before it was killed as often as it is to be.
    while not os.path.exists("finish"):
        time.sleep(0.01)
    for worker in workers:
        numbers.put(None)
    for worker in workers:
        worker.join()
    print("total", total.value, [worker.exitcode for worker in workers])
