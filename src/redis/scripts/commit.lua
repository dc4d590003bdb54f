-- Publishes a staged value, unless something newer is known of its key. Ends the lease.
--
-- KEYS  1 value, 2 control record, 3 staged value
-- ARGV  1 owner, 2 token, 3 channel, 4 lifetime of the control record in ms, 5 lifetime of the value in ms,
--       6 the rest of the event
-- Returns ok; late: published, though the lease was lost; or, not published: old: a newer value is there;
-- inv: invalidated since; gone: the record of this load is lost; lost: the staged value is gone.

-- A token, if it is one: beyond 2^53 numbers here are not exact, and no clock is.
local function token_of(text)
  local number = tonumber(text)
  if number and number < 2 ^ 53 then return number end
end

local value, control, staged = KEYS[1], KEYS[2], KEYS[3]
local owner, token, channel = ARGV[1], tonumber(ARGV[2]), ARGV[3]

local c = redis.call('HMGET', control, 't', 'o', 'i', 'w')
local mine = c[1] == ARGV[2] and c[2] == owner
local header = redis.call('GETRANGE', value, 0, 15)
local there = 0
if #header == 16 then
  local magic, format, _, _, _, t = struct.unpack('>BBBBI4I8', header)
  -- Something else's value, or a damaged one, is not newer than anything.
  if magic == 0xc5 and format == 1 then there = token_of(t) or 0 end
end
local last, floor = token_of(c[1]), token_of(c[3] or '0')
local verdict = 'ok'
if redis.call('EXISTS', staged) == 0 then
  verdict = 'lost'
elseif not last or not floor or token > last then
  verdict = 'gone' -- check: record
elseif token <= floor then
  verdict = 'inv' -- check: invalidation floor
elseif there >= token then
  verdict = 'old' -- check: token compare
end

if mine then
  redis.call('HDEL', control, 'o', 'x', 'w', 'e', 'm', 'u')
  redis.call('PEXPIRE', control, ARGV[4])
end
if verdict == 'ok' then
  redis.call('RENAME', staged, value)
  redis.call('PEXPIRE', value, ARGV[5])
else
  redis.call('UNLINK', staged)
end
-- Only where someone waits or has an older value: an event costs the server more than the rest.
if c[4] or #header > 0 or verdict ~= 'ok' then
  redis.call('PUBLISH', channel, (verdict == 'ok' and 'p' or 'a') .. string.char(#ARGV[2]) .. ARGV[2] .. ARGV[6])
end
if verdict == 'ok' and not mine then return 'late' end
return verdict
