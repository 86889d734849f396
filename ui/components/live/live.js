// Follows a job: asks for its progress until it has ended, then has the page rerun.

const AGAIN = 1000; // milliseconds after a failed request, or an end that the page has not shown yet
const followers = new WeakMap();

export default function ({ data, parentElement, setTriggerValue }) {
  let follower = followers.get(parentElement);
  if (follower?.job !== data.job) {
    if (follower) follower.closed = true;
    follower = new Follower(parentElement.querySelector(".live"), data);
    followers.set(parentElement, follower);
    follower.follow();
  }
  follower.end = () => setTriggerValue("ended", data.job);
  return () => {
    follower.closed = true;
    followers.delete(parentElement);
  };
}

class Follower {
  constructor(root, { job, address, first }) {
    this.root = root;
    this.job = job;
    this.address = address;
    this.closed = false;
    this.show(first);
  }

  async follow() {
    let seen = "";
    while (!this.closed) {
      const found = await this.ask(seen);
      if (this.closed) return;
      if (found?.active) {
        seen = found.stamp;
        this.show(found);
      } else {
        // Ended; or there is no answer, and the page itself must look.
        this.end();
        await new Promise((done) => setTimeout(done, AGAIN));
      }
    }
  }

  async ask(seen) {
    try {
      const answer = await fetch(`${this.address}?seen=${encodeURIComponent(seen)}`);
      return answer.ok ? await answer.json() : null;
    } catch {
      return null;
    }
  }

  show(found) {
    const [bar, line] = this.root.children;
    bar.hidden = !found.total;
    bar.max = Math.max(found.total, 1);
    bar.value = found.done;
    bar.setAttribute("aria-label", "Progress");
    if (line.textContent !== found.text) line.textContent = found.text;
    const detail = { job: this.job, partial: found.partial };
    globalThis.dispatchEvent(new CustomEvent("psvit-progress", { detail }));
  }
}
