// What scrolls sideways, code and tables, can be reached with the Tab key.
const reach = () => {
  for (const element of document.querySelectorAll("pre > code, .md-typeset__scrollwrap, .highlight-ipynb")) element.tabIndex = 0;
};
addEventListener("load", () => setTimeout(reach));
