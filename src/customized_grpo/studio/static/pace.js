// Work that is asked for again and again is done at most so often, and the longer it takes the more seldom: a run of
// 20,000 iterations takes the server seconds to draw.

const SHARE = 8; // a rest of so many times the work

// Returns a function that asks for the work; it is done once for all who ask during a rest.
export function paced(work, leastMs) {
  let timer = null;
  let restUntil = 0;
  let isStopped = false;

  async function run() {
    const begun = performance.now();
    await work();
    const now = performance.now();
    restUntil = now + Math.max(leastMs, SHARE * (now - begun));
    timer = null;
  }

  function ask() {
    if (!isStopped) timer ??= setTimeout(run, Math.max(0, restUntil - performance.now()));
  }

  ask.stop = () => {
    isStopped = true;
    clearTimeout(timer);
  };
  return ask;
}
