"""What is told about runs: the numbers, and the page that shows them."""
