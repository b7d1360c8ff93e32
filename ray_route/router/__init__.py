"""The router actor: decides links, watches pods, writes Redis. One per namespace."""
