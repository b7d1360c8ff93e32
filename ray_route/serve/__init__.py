"""Ray Serve: sessions that have a home replica, and keep it while replicas are added."""

from ray_route.serve.request_router import StickyRequestRouter
from ray_route.serve.sessions import current_session, in_session, is_home

__all__ = ["StickyRequestRouter", "current_session", "in_session", "is_home"]
