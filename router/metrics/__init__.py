"""What a router tells of itself to who watches many."""
