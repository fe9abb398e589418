"use strict";

// A clip that is shown twice is held once.
for (const video of document.querySelectorAll("video[data-same]")) {
  const first = document.getElementById(video.dataset.same);
  video.className = first.className;
  video.poster = first.poster;
  video.src = first.src;
}

// The clips of one exhibit play together, from their first frames, so that they can be compared.
for (const exhibit of document.querySelectorAll(".exhibit")) {
  const videos = [...exhibit.querySelectorAll("video")];
  const play = () => {
    for (const video of videos) {
      video.currentTime = 0;
      video.play().catch(() => {}); // it may be stopped before it has begun
    }
  };
  const stop = () => videos.forEach((video) => video.pause());
  exhibit.addEventListener("pointerenter", play);
  exhibit.addEventListener("pointerleave", stop);
  exhibit.addEventListener("focusin", play);
  exhibit.addEventListener("focusout", stop);
}

for (const button of document.querySelectorAll(".copyable button")) {
  const code = button.previousElementSibling;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code); // where pages may not write to the clipboard
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
}
