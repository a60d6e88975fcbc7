// Moves the large "tuned" image of every row through the iterations. Without this the strips show the same images.
(function () {
  var box = document.getElementById("slider");
  if (!box) return;
  var input = box.querySelector("input"), label = box.querySelector("output");
  function show() {
    var index = Number(input.value);
    document.querySelectorAll(".sample").forEach(function (sample) {
      var cells = sample.querySelectorAll(".strip div");
      cells.forEach(function (cell, i) { cell.classList.toggle("on", i === index); });
      var name = cells[index].dataset.name;
      sample.querySelector("img.tuned").src = cells[index].querySelector("img").src;
      sample.querySelector("span.tuned").textContent = name;
      label.textContent = name;
    });
  }
  input.addEventListener("input", show);
  box.hidden = false;
  show();
})();
