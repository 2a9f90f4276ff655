"""`penstock top`: scraped pages become samples, samples differences, differences figures, and
figures text; what waits is `scrape.py` and `watch.py`, what draws `screen.py`."""
