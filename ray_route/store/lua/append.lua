-- Appends an entry to the change stream, on a full server too: near caches live by its beats, and
-- the stream is kept short, so that it can't grow. PERSIST changes nothing (see _pods.lua).
-- KEYS  1 the stream
-- ARGV  1 about how many entries are kept; 2.. field, value, field, value...
-- Returns the entry's id
redis.call('PERSIST', KEYS[1])
return redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', unpack(ARGV, 2))
