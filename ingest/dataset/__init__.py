"""DATA on disk: writing it, in bounded memory and all or nothing."""
