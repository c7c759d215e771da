"""What a collection holds and how it is stored."""
