-- Prelude of remove and remove_if, after _links.lua.
-- Removes a link after so many ms; 0 is now. Later means a mark and a TTL that is never longer
-- than the one it had: nothing but set and relink takes that back.
local function remove(key, link, after)
  advance()
  if after == 0 then
    redis.call('DEL', key)
    return nil
  end
  local kind = is_persistent(link) and 'p' or 't'
  link.value = stem(link.owner, link.epoch, link.replaced) .. ':' .. kind
  link.ttl = math.max(1, math.min(link.ttl or after, after))
  redis.call('SET', key, link.value, 'PX', text(link.ttl))
  return link
end
