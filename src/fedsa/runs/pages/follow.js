// The page is served while a run goes on: look again and again whether there is another, and take its place.
(() => {
  const lost = document.getElementById("lost");
  let version = document.body.dataset.version;

  const replace = text => {
    const page = new DOMParser().parseFromString(text, "text/html");
    const open = [...document.querySelectorAll("main details")].map(each => each.open);
    const places = [...document.querySelectorAll("main .scroll")].map(each => [each.scrollLeft, each.scrollTop]);
    const sameParts = (mark, count) => page.querySelectorAll(mark).length === count;
    const keepOpen = sameParts("main details", open.length), keepPlaces = sameParts("main .scroll", places.length);
    version = page.body.dataset.version;
    document.title = page.title;
    document.querySelector("main").replaceWith(document.adoptNode(page.querySelector("main")));
    document.dispatchEvent(new Event("fedsa:replaced"));
    if (keepOpen) document.querySelectorAll("main details").forEach((each, number) => { each.open = open[number]; });
    if (keepPlaces) document.querySelectorAll("main .scroll").forEach((each, number) => each.scrollTo(...places[number]));
  };

  const look = async () => {
    try {
      const answer = await fetch("/?after=" + encodeURIComponent(version), {cache: "no-store"});
      if (answer.status === 200) replace(await answer.text());
      lost.hidden = answer.status === 200 || answer.status === 204;
    } catch {
      lost.hidden = false;
    }
    setTimeout(look, 1000);
  };

  setTimeout(look, 1000);
})();
