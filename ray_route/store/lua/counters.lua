-- Tells counters of shards, and the time of the server that holds them.
-- Prelude: _numbers.lua
-- KEYS  counters, "counter:router", of one server
-- Returns {microseconds since 1970 as text, then per key: its value; nil if it has none, or is of
-- another type}
local t = redis.call('TIME')
local reply = {string.format('%.0f', t[1] * 1000000 + t[2])}
for i = 1, #KEYS do reply[i + 1] = (try('GET', KEYS[i])) end
return reply
