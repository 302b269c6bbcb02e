"use strict";
// Paints numbers on a canvas; what they are of, and every word, is explorer.js's.
const paint = (() => {
  const ratio = () => devicePixelRatio || 1;
  function sized(canvas) {
    canvas.width = Math.round(canvas.clientWidth * ratio());
    canvas.height = Math.round(canvas.clientHeight * ratio());
    const pen = canvas.getContext("2d");
    pen.clearRect(0, 0, canvas.width, canvas.height);
    return pen;
  }
  // Rows of opacities, 0 to 1; marked is [row, column, columns], what a frame is drawn around, or undefined.
  function cells(canvas, rows, columns, colours, marked) {
    const pen = sized(canvas);
    const [wide, high] = [canvas.width / columns, canvas.height / rows.length];
    pen.fillStyle = colours.ink;
    rows.forEach((row, q) => row.forEach((level, k) => {
      pen.globalAlpha = level;
      const [left, top] = [Math.round(k * wide), Math.round(q * high)];
      pen.fillRect(left, top, Math.round((k + 1) * wide) - left, Math.round((q + 1) * high) - top);
    }));
    pen.globalAlpha = 1;
    if (!marked) return;
    const [row, column, count] = marked;
    pen.strokeStyle = colours.mark;
    pen.lineWidth = 2 * ratio();
    pen.strokeRect(column * wide + 1, row * high, count * wide - 2, high);
  }
  // Bars over a floor of rows and columns, turned by `degrees`; gives the largest: [value, row, column].
  function bars(canvas, rows, degrees, colours, labels) {
    const pen = sized(canvas);
    const [w, h] = [canvas.width, canvas.height];
    const columns = rows[0].length;
    const most = Math.max(...rows.flat()) || 1;
    const angle = (degrees * Math.PI) / 180;
    const [sin, cos] = [Math.sin(angle), Math.cos(angle)];
    const span = Math.min(w, 1.6 * h) * 0.44;
    const point = (t, d, z) => {
      const x = (rows.length > 1 ? t / (rows.length - 1) : 0.5) - 0.5;
      const y = d / Math.max(1, columns - 1) - 0.5;
      const [across, depth] = [x * cos - y * sin, x * sin + y * cos];
      return [w / 2 + across * span * 1.35, h * 0.72 + depth * span * 0.45 - z * h * 0.44, depth];
    };
    pen.strokeStyle = colours.rule;
    pen.lineWidth = ratio();
    const corners = [[0, 0], [rows.length - 1, 0], [rows.length - 1, columns - 1], [0, columns - 1]];
    pen.beginPath();
    corners.forEach(([t, d], i) => pen[i ? "lineTo" : "moveTo"](...point(t, d, 0).slice(0, 2)));
    pen.closePath();
    pen.stroke();
    const all = rows.flatMap((row, t) => row.map((x, d) => [point(t, d, 0), point(t, d, x / most), x / most]));
    all.sort((a, b) => a[0][2] - b[0][2]);
    for (const [foot, head, level] of all) {
      pen.strokeStyle = level > 0.1 ? colours.hot : colours.cold;
      pen.globalAlpha = level > 0.1 ? 1 : 0.55;
      pen.lineWidth = (level > 0.1 ? 3 : 1.2) * ratio();
      pen.beginPath();
      pen.moveTo(foot[0], foot[1]);
      pen.lineTo(head[0], Math.min(head[1], foot[1] - 1));
      pen.stroke();
    }
    pen.globalAlpha = 1;
    pen.fillStyle = colours.soft;
    pen.font = `${13 * ratio()}px system-ui, sans-serif`;
    pen.textAlign = "center";
    const label = (text, t, d) => {
      const [x, y] = point(t, d, 0);
      const gap = 16 * ratio();
      const half = pen.measureText(text).width / 2 + 4;
      pen.fillText(text, Math.max(half, Math.min(w - half, x)), y + (y > h * 0.72 ? gap : -gap * 0.4));
    };
    const [midT, midD] = [(rows.length - 1) / 2, (columns - 1) / 2];
    label(labels.rows, midT, cos > 0 ? columns - 1 : 0);
    label(labels.columns, sin > 0 ? rows.length - 1 : 0, midD);
    const peak = rows.flatMap((row, t) => row.map((x, d) => [x, t, d])).sort((a, b) => b[0] - a[0])[0];
    const [x, y] = point(peak[1], peak[2], 1);
    pen.fillStyle = colours.ink;
    pen.fillText(labels.largest(peak[0]), Math.max(30, Math.min(w - 30, x)), Math.max(14 * ratio(), y - 8));
    return peak;
  }
  return { cells, bars };
})();
