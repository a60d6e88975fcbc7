// Asks for the token. The link that `cgrpo studio` prints has it behind the #, which no browser sends anywhere.
const form = document.getElementById("login");
const field = document.getElementById("token");

async function logIn(token) {
  const answer = await fetch("/login", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ token }),
  });
  if (answer.ok) {
    location.replace("/");
  } else {
    document.getElementById("refused").textContent = "That is not the token.";
    field.select();
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  logIn(field.value);
});

const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  history.replaceState(null, "", "/");
  logIn(given);
}
