// Before the first paint: the colours chosen on this device, if any were.
try {
  const theme = localStorage.getItem("panel.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // without storage the device's own choice holds
}
