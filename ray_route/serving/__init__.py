"""What `ray_route.serve` rests on: the routers' side of a service, and the replicas'."""
