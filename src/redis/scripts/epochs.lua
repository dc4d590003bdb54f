-- Reads up to which tokens all is void: of the namespace, of its caches, and of groups of their keys.
--
-- KEYS  1 epochs
-- Returns names and tokens in turn.
if redis.call('EXISTS', KEYS[1]) == 0 then
  -- Nobody knows what was voided before this record was made, so all from before is. Where there is no memory for it,
  -- or on a replica, it is made another time.
  local time = redis.call('TIME')
  redis.pcall('HSET', KEYS[1], '', string.format('%.0f', time[1] * 1000000 + time[2]))
end
return redis.call('HGETALL', KEYS[1])
