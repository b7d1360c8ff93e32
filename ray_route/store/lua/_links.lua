-- Prelude of every script on links. All keys of a script are of one shard.
-- Prelude: _numbers.lua
-- KEYS  1 the shard's counter, "counter:router"; 2.. one link per uid
-- ARGV  1 incarnation of the calling router; 2 highest counter that it has seen for this shard;
--       the last one: the latest time, in microseconds, that the server's clock may show
-- A link is "pod:incarnation:epoch"; then ":" and the epoch that it replaced, if another link was
-- there before it; then ":t" or ":p" if its removal is scheduled, which says whether it was temporary
-- or persistent before that. A key that holds anything else is damaged: it stays as it is, and the
-- others of the script are dealt with.
-- Numbers become text by %.0f alone: "..", tostring and cjson print 14 digits, an epoch has 16.
local router, seen = tonumber(ARGV[1]), tonumber(ARGV[2])
local counter, found, writer, time = 0, 0, 0, nil

local function text(number) return string.format('%.0f', number) end

local function now_us()
  if not time then
    local t = redis.call('TIME')
    time = t[1] * 1000000 + t[2]
  end
  return time
end

-- 'superseded': a younger router has written here. 'lost': Redis has lost writes, or the counter is
-- damaged, which a recovery mends. 'stepped': it is later than it can be, so the clock has stepped,
-- or this was sent long ago: links may have run out before their leases, and one that is missing
-- means nothing. In all these cases the script must return at once, having changed nothing.
-- 'at_any_time': it reads no absence from the links.
local function begin(at_any_time)
  local stored, is_foreign = try('GET', KEYS[1])
  if stored or is_foreign then
    local c, w = string.match(stored or '', '^(%d+):(%d+)$')
    if not (is_number(c) and is_number(w)) then return 'lost' end
    counter, found, writer = tonumber(c), tonumber(c), tonumber(w)
  end
  if router < writer then return 'superseded' end
  if counter < seen then return 'lost' end
  if not at_any_time and now_us() > tonumber(ARGV[#ARGV]) then return 'stepped' end
  return 'ok'
end

-- Lets a script through on a full server, which refuses a script's first write, but not one after
-- a write that needs no memory: PERSIST changes nothing here. For scripts that add no link.
local function allow_full() redis.call('PERSIST', KEYS[1]) end

-- The counter's next value: every mutation takes one, a new owner's epoch is the one it took.
local function advance()
  counter = math.max(math.max(counter, seen) + 1, now_us())
  return counter
end

-- How many ms a key has left; nil: it has no end.
local function left_ms(key)
  local ttl = redis.call('PTTL', key)
  return ttl >= 0 and ttl or nil
end

-- Returns nil for no link. A damaged one has no owner; its value is reported with a '?' before it.
local function read(key)
  local value, is_foreign = try('GET', key)
  if is_foreign then return {value = '?another type', is_damaged = true, ttl = left_ms(key)} end
  if not value then return nil end
  local owner, epoch, rest = string.match(value, '^(%d+:%d+):(%d+)(.*)$')
  local replaced, marked = string.match(rest or '', '^:(%d+)(.*)$')
  rest = marked or rest
  local mark = rest == '' and '' or string.match(rest or '', '^:([tp])$')
  if not (is_number(epoch) and is_number(replaced or '0') and mark) or #owner > 27 then
    return {value = '?' .. string.sub(value, 1, 40), is_damaged = true, ttl = left_ms(key)}
  end
  return {value = value, owner = owner, epoch = epoch, replaced = replaced, mark = mark,
    ttl = left_ms(key)}
end

-- What a link begins with, whether or not its removal is scheduled.
local function stem(owner, epoch, replaced)
  return owner .. ':' .. epoch .. (replaced and ':' .. replaced or '')
end

local function is_persistent(link)
  return link.mark == 'p' or (link.mark == '' and not link.ttl)
end

-- Gives the link to owner ("pod:incarnation"). The epoch changes with the owner alone. A link that is
-- made where there is none replaces nothing: who knows who had the uid since the last one ended.
local function assign(key, held, owner, persistent, ttl)
  local value = stem(owner, text(advance()), held and held.epoch)
  if held and held.owner == owner then value = stem(owner, held.epoch, held.replaced) end
  if persistent then
    redis.call('SET', key, value)
    return {value = value}
  end
  redis.call('SET', key, value, 'PX', ttl)
  return {value = value, ttl = tonumber(ttl)}
end

-- Lengthens the life of a temporary link; a scheduled removal stays scheduled, and the link's life as
-- it is, unless its `owner_knows` of that, and ends it in time.
local function refresh(key, link, ttl, owner_knows)
  if link.mark ~= '' and not owner_knows then return false end
  if not link.ttl or link.ttl >= tonumber(ttl) then return false end
  redis.call('PEXPIRE', key, ttl)
  link.ttl = tonumber(ttl)
  advance()
  return true
end

local reply = {'ok', ''}

-- Adds one uid's triple to the reply: value, ttl_ms (nil: none), 1 if this script wrote it.
local function report(link, written)
  reply[#reply + 1] = link and link.value or false
  reply[#reply + 1] = link and link.ttl or false
  reply[#reply + 1] = written and 1 or 0
end

-- Tells the counter, and after a ':' which one the script found: see router/spans.py.
local function finish()
  local now = text(counter)
  redis.call('SET', KEYS[1], now .. ':' .. text(router))
  reply[2] = now .. ':' .. text(found)
  return reply
end
