"""Published weights in our own classes: key maps, both ways."""
