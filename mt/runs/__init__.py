"""What calls several rooms: looking into what is on the disk, and running again what went wrong."""
