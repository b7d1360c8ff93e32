-- Prelude of the scripts by which routers decide over pods' lives.
-- True if a younger router than the calling one has claimed the namespace: whoever vouches for a life
-- must know of every end that was written before.
local function is_deposed(meta, router)
  return tonumber(redis.call('HGET', meta, 'router') or '0') > tonumber(router)
end
