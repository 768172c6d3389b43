// The song map: map, table and details of one song.
{
  const songs = read("songs");
  const minutes = (seconds) => `${Math.floor(Math.round(seconds) / 60)}:${String(Math.round(seconds) % 60).padStart(2, "0")}`;
  const short = (name) => name.split("/").pop();
  const playButton = (song) => player.sounds[song]
    ? player.button({ sound: song }, `play ${songs[song].name} from ${minutes(songs[song].start)}`) : "";
  let chosen = null, table;

  const map = new PointMap(find("#map"), songs, "Map of songs", (song) => choose(song, find("#play").checked));

  const link = (song, text = short(songs[song].name)) => make("button", { type: "button", class: "name", title: songs[song].name, onclick: (event) => { event.stopPropagation(); choose(song); } }, text);

  const folders = new Set(songs.map(({ group }) => group));
  const ofFolder = (song) => folders.size > 1 && songs[song].group ? make("small", { class: "note" }, ` ${songs[song].group}`) : "";

  function row(song) {
    const { name, seconds, near, similarity } = songs[song];
    const tr = make("tr", { onclick: () => choose(song) },
      make("td", {}, link(song, name)), make("td", {}, playButton(song)), make("td", { class: "number" }, minutes(seconds)),
      make("td", { class: "near" }, near.length ? link(near[0]) : "–"), make("td", { class: "number" }, similarity[0]?.toFixed(2) ?? "–"));
    tr.classList.toggle("chosen", song === chosen);
    return tr;
  }

  function choose(song, plays = false) {
    chosen = song;
    const { name, group, seconds, start, near, similarity } = songs[song];
    map.mark(song, near);
    const button = playButton(song);
    find("#detail").replaceChildren(
      make("h3", {}, button, " ", short(name)),
      make("p", { class: "note" }, `${group ? `${name.slice(0, -short(name).length - 1)}, ` : ""}${minutes(seconds)} long${button ? `; the clip is from ${minutes(start)}` : ""}`),
      make("p", {}, near.length ? "nearest songs, with similarity:" : "no other song to compare with"),
      make("ol", { class: "near" }, ...near.map((other, i) => make("li", {}, make("span", {}, playButton(other), make("span", {}, link(other), ofFolder(other)), make("span", { class: "number" }, similarity[i].toFixed(2)))))));
    if (plays && button) button.click();
    table?.draw();
  }

  const colours = {
    group: () => map.colourByName(songs.map(({ group }) => group), "in no folder"),
    seconds: () => map.colourByNumber(songs.map(({ seconds }) => seconds / 60), "length, minutes"),
    closeness: () => map.colourByNumber(songs.map(({ similarity }) => similarity[0] ?? null), "similarity to the nearest song"),
  };
  find("#colour").addEventListener("change", (event) => colours[event.target.value]());
  const first = songs.some(({ group }) => group) ? "group" : songs.length > 1 ? "closeness" : "seconds";
  find("#colour").value = first;
  colours[first]();

  table = new SortedTable(find("#table"), songs.map(({ name, seconds, near, similarity }, song) => ({
    song, values: [name, "", seconds, near.length ? short(songs[near[0]].name) : "", similarity[0] ?? null], node: () => row(song),
  })));
  table.sort(0);
  find("#search").addEventListener("input", (event) => {
    const plain = (text) => text.normalize().toLowerCase(); // macOS keeps an accent apart from its letter
    const text = plain(event.target.value.trim()), test = (song) => plain(songs[song].name).includes(text);
    table.filter(text && ((row) => test(row.song)));
    map.filter(text && test);
    if (text && table.shown.length) choose(table.shown[0].song);
  });
  choose(table.shown[0].song);
}
