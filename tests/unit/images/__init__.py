"""What images and compose.yaml say, without building or running them."""
