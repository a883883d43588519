// Timers and worker threads; the last line is the same for every undisturbed run.
'use strict';
const { Worker, isMainThread, parentPort, workerData } = require('worker_threads');
const { createHash } = require('crypto');
const { existsSync } = require('fs');

const STEPS = 20;

if (!isMainThread) {
  const kept = new Map();
  let chain = Buffer.from(`worker ${workerData}`);
  parentPort.on('message', (step) => {
    for (let round = 0; round < 20000; round++) {
      chain = createHash('sha256').update(chain).digest();
      if (round % 50 === 0) kept.set(`${step}/${round}`, chain.toString('hex'));
    }
    parentPort.postMessage({ step, chain: chain.toString('hex'), kept: kept.size });
  });
} else {
  const total = createHash('sha256');
  const workers = [1, 2].map((number) => new Worker(__filename, { workerData: number }));
  let ticks = 0;
  const ticking = setInterval(() => { ticks += 1; }, 5);
  workers.forEach((worker) => worker.on('error', (error) => { throw error; }));
  const answers = (step) => Promise.all(workers.map((worker) => new Promise((resolve) => {
    worker.once('message', resolve);
    worker.postMessage(step);
  })));
  const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
  (async () => {
    console.log('ready');
    for (let step = 1; step <= STEPS; step++) {
      for (const answer of await answers(step)) total.update(JSON.stringify(answer));
      const before = ticks;
      await sleep(50);
      if (ticks === before) throw new Error('the interval timer has stopped');
      console.log(`step ${step}`);
    }
    // Not at its end before it was killed as often as it is to be.
    while (!existsSync('finish')) await sleep(10);
    clearInterval(ticking);
    await Promise.all(workers.map((worker) => worker.terminate()));
    console.log(`result ${total.digest('hex')}`);
  })().catch((error) => { console.error(error); process.exit(1); });
}
