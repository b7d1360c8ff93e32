-- Prelude of the scripts by which a router writes what its namespace runs with.
-- Clears what is of another type: the router knows what belongs there.
local function clear_foreign(meta)
  local _, is_foreign = try('HGET', meta, 'router')
  if is_foreign then redis.call('DEL', meta) end
end
