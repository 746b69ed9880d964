"""`manta plan`: what a run would take on so many devices, and how to split them."""
