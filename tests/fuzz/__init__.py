"""Hostile input, made by hypothesis from what the services declare: nothing they are sent may harm them."""
