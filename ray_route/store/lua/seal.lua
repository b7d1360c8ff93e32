-- Notes that the namespace is whole: its pod tables are what they should be. Not if Redis has lost
-- what the recovery of that token had written before them.
-- KEYS  1 meta, a hash
-- ARGV  1 token of the recovery; 2 what names the server processes; 3 the one that has this key
-- Prelude: _numbers.lua
-- Returns 'ok' or 'lost'
if try('HGET', KEYS[1], 'replay') ~= ARGV[1] then return 'lost' end
-- HDEL first: a full server takes what follows it (see _pods.lua).
redis.call('HDEL', KEYS[1], 'replay')
redis.call('HSET', KEYS[1], 'sealed', ARGV[2], 'home', ARGV[3])
return 'ok'
