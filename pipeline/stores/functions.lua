-- The store functions: each touches keys of one hash slot only (all keys of a call carry the same bucket tag).
-- `@` in names becomes a hash of this text, so that two releases can run side by side.

-- Rows. KEYS: rows hash, floor. ARGV: (key, version, links, body) per write; an empty body is a delete.
-- Stored: version (32), length and bytes of former links, length and bytes of links, body.
-- Answer per write: 0 stale, 1 newer with the same content, or the former links (each with its length) as text.
local function apply(keys, args)
  local floor = redis.call('GET', keys[2])
  local names, current, touched, out = {}, {}, {}, {}
  for i = 1, #args, 4 do
    if current[args[i]] == nil then
      current[args[i]] = false
      names[#names + 1] = args[i]
    end
  end
  for first = 1, #names, 1000 do
    local last = math.min(first + 999, #names)
    local found = redis.call('HMGET', keys[1], unpack(names, first, last))
    for i = first, last do current[names[i]] = found[i - first + 1] end
  end
  local changed = {}
  for i = 1, #args, 4 do
    local key, version, links, body = args[i], args[i + 1], args[i + 2], args[i + 3]
    local stored = current[key]
    local answer = ''
    local stored_version = stored and string.sub(stored, 1, 32)
    if floor and version < floor and (not stored or version > stored_version) then
      answer = 0
    elseif stored then
      if version < stored_version then
        answer = 0
      else
        local former_length = struct.unpack('>I4', stored, 33)
        local former = string.sub(stored, 37, 36 + former_length)
        if version == stored_version then
          answer = former
        else
          local links_length = struct.unpack('>I4', stored, 37 + former_length)
          local links_start = 41 + former_length
          local stored_links = string.sub(stored, links_start, links_start + links_length - 1)
          local same = not touched[key] and string.sub(stored, links_start + links_length) == body
          -- A truncate writes from another partition: what its deletes or the row's own batch left undone is kept.
          if not touched[key] and floor ~= version and floor ~= stored_version then former = '' end
          if links_length > 0 and stored_links ~= links then
            local blob = struct.pack('>I4', links_length) .. stored_links
            if not string.find(former, blob, 1, true) then former = former .. blob end
          end
          current[key] = table.concat({ version, struct.pack('>I4', #former), former, struct.pack('>I4', #links), links, body })
          changed[key] = true
          if same and former == '' then answer = 1 else answer = former end
        end
      end
      touched[key] = true
    else
      current[key] = table.concat({ version, struct.pack('>I4', 0), struct.pack('>I4', #links), links, body })
      changed[key] = true
      touched[key] = true
    end
    out[(i + 3) / 4] = answer
  end
  local pairs_out = {}
  for key in pairs(changed) do
    pairs_out[#pairs_out + 1] = key
    pairs_out[#pairs_out + 1] = current[key]
    if #pairs_out >= 2000 then
      redis.call('HSET', keys[1], unpack(pairs_out))
      pairs_out = {}
    end
  end
  if #pairs_out > 0 then redis.call('HSET', keys[1], unpack(pairs_out)) end
  return out
end

-- Wide-column rows. KEYS: rows hash, expiry index. ARGV: (field of the expiry index, key, token, version, links, body,
-- confirmed, expiry) per write; a body ends in the 16 bytes of its token. Answer per write: 0 where another token lies
-- there, else the former links.
local function cells(keys, args)
  local out = {}
  for i = 1, #args, 8 do
    local key, token, version, links, body = args[i + 1], args[i + 2], args[i + 3], args[i + 4], args[i + 5]
    local stored = redis.call('HGET', keys[1], key)
    local answer = ''
    if (stored and string.sub(stored, -16) or '') ~= token then
      answer = 0
    else
      local former = ''
      if stored then
        local former_length = struct.unpack('>I4', stored, 33)
        if args[i + 6] ~= '1' then former = string.sub(stored, 37, 36 + former_length) end
        local links_length = struct.unpack('>I4', stored, 37 + former_length)
        local stored_links = string.sub(stored, 41 + former_length, 40 + former_length + links_length)
        if links_length > 0 and stored_links ~= links then
          local blob = struct.pack('>I4', links_length) .. stored_links
          if not string.find(former, blob, 1, true) then former = former .. blob end
        end
      end
      local parts = { version, struct.pack('>I4', #former), former, struct.pack('>I4', #links), links, body }
      redis.call('HSET', keys[1], key, table.concat(parts))
      if args[i + 7] == '' then
        redis.call('ZREM', keys[2], args[i])
      else
        redis.call('ZADD', keys[2], args[i + 7], args[i])
      end
      answer = former
    end
    out[(i + 7) / 8] = answer
  end
  return out
end

-- KEYS: one set of row keys per partition. ARGV: per key the number of rows, then their keys.
local function inhabit(keys, args)
  local position = 1
  for _, name in ipairs(keys) do
    local last = position + tonumber(args[position])
    for member = position + 1, last do redis.call('SADD', name, args[member]) end
    position = last + 1
  end
  return 1
end

-- KEYS: one set of deletions per partition. Answer: their members.
local function stones(keys)
  local out = {}
  for i, name in ipairs(keys) do out[i] = redis.call('SMEMBERS', name) end
  return out
end

-- KEYS: deletions of a partition, its row keys. ARGV: a deletion. Answer: the row keys.
local function bury(keys, args)
  redis.call('SADD', keys[1], args[1])
  return redis.call('SMEMBERS', keys[2])
end

-- KEYS: expiry index of a bucket. ARGV: time, limit. Answer: what is due.
local function due(keys, args)
  return redis.call('ZRANGEBYSCORE', keys[1], '-inf', args[1], 'LIMIT', 0, args[2])
end

-- KEYS: expiry index of a bucket. ARGV: (member, the time that stands there, the time that shall or nothing) each.
local function looked(keys, args)
  for i = 1, #args, 3 do
    local score = redis.call('ZSCORE', keys[1], args[i])
    if score and tonumber(score) == tonumber(args[i + 1]) then
      if args[i + 2] == '' then
        redis.call('ZREM', keys[1], args[i])
      else
        redis.call('ZADD', keys[1], args[i + 2], args[i])
      end
    end
  end
  return 1
end

-- KEYS: rows hash, floor. ARGV: keys of rows. Answer: the rows, then the floor.
local function rows(keys, args)
  local out = {}
  for first = 1, #args, 1000 do
    local last = math.min(first + 999, #args)
    local found = redis.call('HMGET', keys[1], unpack(args, first, last))
    for i = 1, last - first + 1 do out[first + i - 1] = found[i] end
  end
  out[#args + 1] = redis.call('GET', keys[2])
  return out
end

-- Truncate. KEYS: rows hash, floor. ARGV: version. Raises the floor; the rows are deleted one by one by the caller.
local function floor(keys, args)
  local known = redis.call('GET', keys[2])
  if not known or known < args[1] then redis.call('SET', keys[2], args[1]) end
  return 1
end

local function unpack_contribution(blob)
  if #blob <= 1 then return nil end
  return cmsgpack.unpack(blob)
end

local function merge(contribution, sign, entries, counters, distincts)
  for number, entry in ipairs(contribution[1]) do
    if entry ~= '' then
      local index = entries[number]
      if not index then
        index = {}
        entries[number] = index
      end
      index[entry] = (index[entry] or 0) + sign
    end
  end
  local list = contribution[2]
  for i = 1, #list, 2 do counters[list[i]] = (counters[list[i]] or 0) + sign * list[i + 1] end
  list = contribution[3]
  for i = 1, #list, 2 do
    local known = distincts[list[i]]
    if known then known[1] = known[1] + sign else distincts[list[i]] = { sign, list[i + 1] } end
  end
end

local function count(key, field, amount)
  if amount ~= 0 then
    local total = redis.call('HINCRBY', key, field, string.format('%.0f', amount))
    if total == 0 then redis.call('HDEL', key, field) end
  end
end

local function write_place(base, args, first, last)
  local names = {}
  for i = first, last, 3 do names[#names + 1] = args[i] end
  local found = redis.call('HMGET', base, unpack(names))
  local current, out = {}, {}
  local entries, counters, distincts = {}, {}, {}
  for i, name in ipairs(names) do if current[name] == nil then current[name] = found[i] end end
  for i = first, last, 3 do
    local child, version, blob = args[i], args[i + 1], args[i + 2]
    local stored = current[child]
    local known = stored and string.sub(stored, 33) or ''
    if not stored or version >= string.sub(stored, 1, 32) then
      if known ~= blob then
        local old, new = unpack_contribution(known), unpack_contribution(blob)
        if old then merge(old, -1, entries, counters, distincts) end
        if new then merge(new, 1, entries, counters, distincts) end
      end
      current[child] = version .. blob
      out[#out + 1] = child
      out[#out + 1] = current[child]
    end
  end
  if #out == 0 then return end
  redis.call('HSET', base, unpack(out))
  for number, index in pairs(entries) do
    for entry, sign in pairs(index) do
      if sign > 0 then
        redis.call('ZADD', base .. ':' .. number, 0, entry)
      elseif sign < 0 then
        redis.call('ZREM', base .. ':' .. number, entry)
      end
    end
  end
  for value, change in pairs(distincts) do
    if change[1] ~= 0 then
      local after = redis.call('HINCRBY', base .. ':d', value, change[1])
      if after == 0 then redis.call('HDEL', base .. ':d', value) end
      local before = after - change[1]
      if before == 0 then
        counters[change[2]] = (counters[change[2]] or 0) + 1
      elseif after == 0 then
        counters[change[2]] = (counters[change[2]] or 0) - 1
      end
    end
  end
  for field, amount in pairs(counters) do count(base .. ':t', field, amount) end
end

-- Relations. KEYS: one per parent value. ARGV: per key the number of children, then (child, version, contribution) each;
-- a contribution is empty (taken out), '+' (plain member) or msgpack of entries, counters and distinct values.
local function relate(keys, args)
  local position = 1
  for _, base in ipairs(keys) do
    local last = position + tonumber(args[position]) * 3
    for first = position + 1, last, 3000 do
      write_place(base, args, first, math.min(first + 2999, last))
    end
    position = last + 1
  end
  return 1
end

-- Lists and totals. KEYS: one per parent value. ARGV: (limit, tops) per key. Answer per key: entries, or
-- {counters as flat list, group, first entries…}.
local function view(keys, args)
  local out = {}
  for i, base in ipairs(keys) do
    local limit, tops = tonumber(args[2 * i - 1]), tonumber(args[2 * i])
    if limit > 0 then
      out[i] = redis.call('ZRANGE', base .. ':1', 0, limit - 1)
    else
      local counters = redis.call('HGETALL', base .. ':t')
      local groups, seen = {}, {}
      if tops > 0 then
        for c = 1, #counters, 2 do
          local group = string.sub(counters[c], 1, -4)
          if not seen[group] then
            seen[group] = true
            groups[#groups + 1] = group
            for number = 1, tops do
              local low = group == '' and '-' or '[' .. group
              local high = group == '' and '+' or '(' .. string.sub(group, 1, -2) .. string.char(string.byte(group, -1) + 1)
              groups[#groups + 1] = redis.call('ZRANGEBYLEX', base .. ':' .. number, low, high, 'LIMIT', 0, 1)[1] or ''
            end
          end
        end
      end
      out[i] = { counters, groups }
    end
  end
  return out
end

-- KEYS: one per parent value. ARGV: limit. Answer per key: false above the limit, else the children.
local function members(keys, args)
  local limit, out = tonumber(args[1]), {}
  for i, base in ipairs(keys) do
    if redis.call('HLEN', base) > limit then
      out[i] = false
    else
      local flat, children = redis.call('HGETALL', base), {}
      for c = 1, #flat, 2 do
        if #flat[c + 1] > 32 then children[#children + 1] = flat[c] end
      end
      out[i] = children
    end
  end
  return out
end

-- KEYS: counters hash of a bucket. ARGV: unit keys.
local function dirty(keys, args)
  local out = {}
  for i, field in ipairs(args) do out[i] = redis.call('HINCRBY', keys[1], field, 1) end
  return out
end

-- KEYS: bundle or fragment keys. ARGV: seconds to live (0: for ever), seconds that a deletion is remembered, values.
local function put(keys, args)
  local out = {}
  for i, key in ipairs(keys) do
    local value = args[i + 2]
    local head = redis.call('GETRANGE', key, 0, 57)
    if head ~= '' and string.sub(head, 1, 16) > string.sub(value, 1, 16) then
      out[i] = 0
    else
      local live = string.sub(value, 18, 18) == '-' and args[2] or args[1]
      if live == '0' then redis.call('SET', key, value) else redis.call('SET', key, value, 'EX', live) end
      if head == '' then
        out[i] = string.sub(value, 18, 18) == '-' and 0 or 1
      else
        out[i] = string.sub(head, 18) ~= string.sub(value, 18, 58) and 1 or 0
      end
    end
  end
  return out
end

-- A bucket's identity: the run id of this process and a token beside the marks, which a flushed memory has lost.
local function identity(key)
  local run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
  return run_id .. ':' .. (redis.call('HGET', key, '#token') or '')
end

-- KEYS: marks hash of a bucket. ARGV: the identity that took the writes, then (partition, offset) pairs.
-- Answer: the present identity; nothing is written where it is another.
local function mark(keys, args)
  local present = identity(keys[1])
  if args[1] == present then
    for i = 2, #args, 2 do redis.call('HSET', keys[1], args[i], args[i + 1]) end
  end
  return present
end

-- KEYS: marks hash of a bucket. ARGV: a new token, in case there is none, then partitions. Answer: identity, offsets.
local function marks(keys, args)
  redis.call('HSETNX', keys[1], '#token', args[1])
  if #args == 1 then return { identity(keys[1]), {} } end
  return { identity(keys[1]), redis.call('HMGET', keys[1], unpack(args, 2)) }
end

-- Bundles with their fragments, for a single node: the fragments' keys are found here. KEYS: bundle keys.
-- ARGV: prefix of fragment keys, number of buckets. Answer per key: the bundle, then fragments in order of reference.
local function fetch(keys, args)
  local out = {}
  for i, key in ipairs(keys) do
    local value = redis.call('GET', key)
    local row = { value }
    if value and string.sub(value, 18, 18) ~= '-' then
      local ending = string.find(value, '\n', 18, true)
      local meta = cjson.decode(string.sub(value, 18, ending - 1))
      for number, reference in ipairs(meta.keys or {}) do row[number + 1] = redis.call('GET', args[1] .. reference) end
    end
    out[i] = row
  end
  return out
end

redis.register_function('ctx_apply_@', apply)
redis.register_function{ function_name = 'ctx_rows_@', callback = rows, flags = { 'no-writes' } }
redis.register_function{
  function_name = 'ctx_value_@',
  callback = function(keys) return redis.call('GET', keys[1]) end,
  flags = { 'no-writes' },
}
redis.register_function('ctx_floor_@', floor)
redis.register_function('ctx_cells_@', cells)
redis.register_function('ctx_inhabit_@', inhabit)
redis.register_function{ function_name = 'ctx_stones_@', callback = stones, flags = { 'no-writes' } }
redis.register_function('ctx_bury_@', bury)
redis.register_function('ctx_looked_@', looked)
redis.register_function{ function_name = 'ctx_due_@', callback = due, flags = { 'no-writes' } }
redis.register_function('ctx_relate_@', relate)
redis.register_function{ function_name = 'ctx_view_@', callback = view, flags = { 'no-writes' } }
redis.register_function{ function_name = 'ctx_members_@', callback = members, flags = { 'no-writes' } }
redis.register_function('ctx_dirty_@', dirty)
redis.register_function('ctx_put_@', put)
redis.register_function('ctx_mark_@', mark)
redis.register_function('ctx_marks_@', marks)
redis.register_function{ function_name = 'ctx_fetch_@', callback = fetch, flags = { 'no-writes', 'allow-cross-slot-keys' } }
