"""What a process knows: links under lease, the pod table, the load of each pod."""
