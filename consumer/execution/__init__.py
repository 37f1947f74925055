"""How handlers run: on the loop, in threads, in processes of their own."""
