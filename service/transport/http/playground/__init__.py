"""The page at / and the page of the API."""
