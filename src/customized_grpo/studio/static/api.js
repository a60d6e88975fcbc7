// Questions to the server.

async function ask(path, options) {
  const answer = await fetch(path, options);
  if (answer.status === 401) location.reload();
  if (!answer.ok) {
    const problem = await answer.json().catch(() => ({ detail: answer.statusText }));
    throw new Error(problem.hint ? `${problem.detail}. ${problem.hint}` : problem.detail);
  }
  return answer;
}

export const getJson = async (path) => (await ask(path)).json();
export const getText = async (path) => (await ask(path)).text();

export async function post(path, body) {
  const headers = { "Content-Type": "application/json" };
  return (await ask(path, { method: "POST", headers, body: JSON.stringify(body) })).json();
}

// Follows a stream of events until the returned function is called. A page that nobody looks at lets go of its
// connection: browsers have only six for a host, and each costs the server some work.
export function follow(path, handlers) {
  const status = document.getElementById("link");
  let source = null;

  function open() {
    source = new EventSource(path);
    source.onopen = () => (status.textContent = "");
    source.onerror = () => (status.textContent = "no connection, trying again");
    for (const [name, handle] of Object.entries(handlers)) {
      source.addEventListener(name, (event) => handle(JSON.parse(event.data)));
    }
  }

  function close() {
    if (source) source.close();
    source = null;
  }

  function look() {
    if (document.hidden) close();
    else if (!source) open();
  }

  look();
  document.addEventListener("visibilitychange", look);
  return () => {
    document.removeEventListener("visibilitychange", look);
    status.textContent = "";
    close();
  };
}
