-- Appends an entry to the change stream, on a full server too: near caches live by its beats, and
-- the stream is kept short, so that it can't grow. PERSIST changes nothing (see _pods.lua). What takes
-- no entry (it is of another type, or its ids are used up) is made anew: readers find their place again.
-- KEYS  1 the stream
-- ARGV  1 about how many entries are kept; 2.. field, value, field, value...
-- Returns the entry's id
redis.call('PERSIST', KEYS[1])
local id = redis.pcall('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', unpack(ARGV, 2))
if type(id) ~= 'table' then return id end
if not (string.find(id.err, 'WRONGTYPE', 1, true) or string.find(id.err, 'exhausted', 1, true)) then
  return id
end
redis.call('DEL', KEYS[1])
return redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', unpack(ARGV, 2))
