"""Load from processes of their own: clients of the product and of the references."""
