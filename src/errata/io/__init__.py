"""What is read and written: images, states, patch folders, chat endpoints."""
