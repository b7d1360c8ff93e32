-- Prelude of the scripts by which routers decide over pods' lives.
-- True if a younger router than the calling one has claimed the namespace: whoever vouches for a life
-- must know of every end that was written before. A meta that can't be read knows of none.
-- Prelude: _numbers.lua
local function is_deposed(meta, router)
  return number(try('HGET', meta, 'router'), 0) > tonumber(router)
end
