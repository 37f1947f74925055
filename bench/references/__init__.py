"""What the product is compared with: each as simple and as fast as it can honestly be."""
