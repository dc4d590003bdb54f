-- Reads the value of a key, or takes the lease to load it.
--
-- KEYS  1 value, 2 control record
-- ARGV  1 owner, 2 lease in ms, 3 only a value of a greater token will do; from 2^53 on no value will, and no failure either,
--       4 the token of the load that the caller waited for, 5 lifetime of the control record in ms, 6 tokens up to this one
--       are void
-- Returns { what, token of the value, ms it stays fresh (less than 0: since when it is not), ms it lives,
--           token of the lease, ms the lease lasts, kind of failure }
-- What: H fresh; S stale, someone else is at it, or failed if the lease lasts 0; R stale, the lease is yours; L the lease is yours;
--       W wait for the lease's holder; E the holder failed.

-- A token, if it is one: beyond 2^53 numbers here are not exact, and no clock is.
local function token_of(text)
  local number = tonumber(text)
  if number and number < 2 ^ 53 then return number end
end

local value, control = KEYS[1], KEYS[2]
local owner, lease, newer_than, awaited = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local life, void = tonumber(ARGV[5]), token_of(ARGV[6]) or 0

local time = redis.call('TIME')
local us = time[1] * 1000000 + time[2]
local ms = math.floor(us / 1000)
local c = redis.call('HMGET', control, 't', 'o', 'x', 'i', 'e', 'm', 'u')
local last, floor = token_of(c[1]), token_of(c[4])
local is_whole = last and (floor or not c[4])
last, floor = last or 0, math.max(floor or 0, void)
local holder, lease_end = c[2], tonumber(c[3] or '0')
local failed, backing_off = token_of(c[5]) or 0, tonumber(c[7] or '0') > ms

local held, token, fresh, lives = false, 0, 0, 0
local header = redis.call('GETRANGE', value, 0, 31)
if #header == 32 then
  local magic, format, _, _, _, t, fresh_ms, hard_ms = struct.unpack('>BBBBI4I8I4I4', header)
  lives = redis.call('PTTL', value)
  if magic == 0xc5 and format == 1 and token_of(t) and lives > 0 then
    token = t
    -- A value from before an invalidation is none.
    held = t > floor -- check: value floor
    fresh = fresh_ms - (hard_ms - lives)
  end
end

if held and fresh > 0 and token > newer_than then
  return { 'H', token, fresh, lives, 0, 0, '' }
end
local left = lease_end - ms
-- A lease that ends later than any can last is from before the clock was set back. A load from before what is void as a
-- whole is none to wait for.
if holder and holder ~= owner and left > 0 and left <= life and (last > void or void == 0) then
  redis.call('HSET', control, 'w', '1')
  return { held and 'S' or 'W', token, fresh, lives, last, left, '' }
end
if failed > 0 and (backing_off or failed == awaited) and newer_than < 2 ^ 53 then
  if held then return { 'S', token, fresh, lives, 0, 0, c[6] } end
  return { 'E', 0, 0, 0, failed, 0, c[6] }
end

-- A clock and a counter in one: it grows even if the control record is lost or another server takes over.
local mine = math.max(us, last + 1, token + 1, void + 1)
redis.call('HSET', control, 't', string.format('%.0f', mine), 'o', owner, 'x', string.format('%.0f', ms + lease))
if not is_whole then
  -- Nobody knows what was invalidated before this record was made, or damaged, so loads from before are void.
  redis.call('HSET', control, 'i', string.format('%.0f', mine - 1)) -- check: birth floor
elseif last <= void then
  -- So are those from before what is void as a whole, whoever holds a lease for one.
  redis.call('HSET', control, 'i', string.format('%.0f', void)) -- check: void floor
end
redis.call('HDEL', control, 'e', 'm', 'u')
redis.call('PEXPIRE', control, life)
return { held and 'R' or 'L', token, fresh, lives, mine, lease, '' }
