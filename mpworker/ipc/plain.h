/* mpworker.ipc._native, the part that pickles plain values: for `_native.c` to include.
 *
 * Nearly every call and result is a few numbers, strings, bytes and tuples of these. The pickle module sets up a pickler
 * with a table of all objects that it has met and a buffer of 4 KiB for each, and takes them down again; that is most of
 * what such a value costs. Here it is measured, written and read in one go.
 *
 * What is written is a pickle like any other (protocol 5; opcodes: Lib/pickletools.py), so whoever reads it later need not
 * know. It has no memo: two references to one object become two equal objects. So nothing mutable is plain, but for one
 * empty dict, which a call without keyword arguments ends with; and of subclasses none is.
 *
 * What is read may be any pickle, and any bytes: whatever is not of the opcodes below is left to the pickle module, which
 * knows the rest or what is wrong.
 */

#define MPW_PLAIN_BYTES_MAX 4096 /* beyond that the copying costs more than what is spared */
#define MPW_PLAIN_ITEMS_MAX 128  /* values that a reader has in hand at a time */
#define MPW_PLAIN_DEPTH_MAX 8    /* of tuples in tuples */

typedef struct {
    uint8_t *at; /* NULL while it is only measured */
    Py_ssize_t size;
    bool has_dict;
} plain_writer;

static void plain_put(plain_writer *writer, const void *bytes, size_t count)
{
    if (writer->at) {
        memcpy(writer->at, bytes, count);
        writer->at += count;
    }
    writer->size += (Py_ssize_t)count;
}

static void plain_put_op(plain_writer *writer, uint8_t op)
{
    plain_put(writer, &op, 1);
}

/* An opcode and the low bytes of a number, little-endian as all machines are that this is built for (ring.h). */
static void plain_put_number(plain_writer *writer, uint8_t op, uint64_t number, size_t count)
{
    plain_put_op(writer, op);
    plain_put(writer, &number, count);
}

static bool plain_put_int(plain_writer *writer, PyObject *value)
{
    int overflow;
    long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
    if (overflow)
        return false;
    if (number >= 0 && number <= UINT8_MAX)
        plain_put_number(writer, 'K', (uint64_t)number, 1); /* BININT1 */
    else if (number >= INT32_MIN && number <= INT32_MAX)
        plain_put_number(writer, 'J', (uint64_t)number, 4); /* BININT */
    else {
        plain_put_number(writer, 0x8a, 8, 1); /* LONG1, of so many bytes */
        plain_put(writer, &number, 8);
    }
    return true;
}

static void plain_put_float(plain_writer *writer, double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    plain_put_number(writer, 'G', __builtin_bswap64(bits), 8); /* BINFLOAT, which is big-endian */
}

static bool plain_put_chars(plain_writer *writer, uint8_t op_short, uint8_t op, const char *chars, Py_ssize_t count)
{
    if (count > MPW_PLAIN_BYTES_MAX)
        return false;
    plain_put_number(writer, count <= UINT8_MAX ? op_short : op, (uint64_t)count, count <= UINT8_MAX ? 1 : 4);
    plain_put(writer, chars, (size_t)count);
    return true;
}

static bool plain_write(plain_writer *writer, PyObject *value, int depth);

static bool plain_put_tuple(plain_writer *writer, PyObject *value, int depth)
{
    Py_ssize_t count = PyTuple_Size(value);
    if (depth >= MPW_PLAIN_DEPTH_MAX || count > MPW_PLAIN_ITEMS_MAX / MPW_PLAIN_DEPTH_MAX)
        return false;
    if (count > 3)
        plain_put_op(writer, '('); /* MARK */
    for (Py_ssize_t i = 0; i < count; i++)
        if (!plain_write(writer, PyTuple_GetItem(value, i), depth + 1))
            return false;
    plain_put_op(writer, count > 3 ? 't' : count ? (uint8_t)(0x84 + count) : ')'); /* TUPLE, TUPLE1 to 3, EMPTY_TUPLE */
    return true;
}

/* Measure or write a value; false if it is not plain, or too large. The same value is the same both times: nothing here
 * runs Python code, and what is plain never changes. */
static bool plain_write(plain_writer *writer, PyObject *value, int depth)
{
    if (writer->size > MPW_PLAIN_BYTES_MAX)
        return false;
    if (value == Py_None)
        plain_put_op(writer, 'N');
    else if (value == Py_True || value == Py_False)
        plain_put_op(writer, value == Py_True ? 0x88 : 0x89); /* NEWTRUE, NEWFALSE */
    else if (PyLong_CheckExact(value))
        return plain_put_int(writer, value);
    else if (PyUnicode_CheckExact(value)) {
        Py_ssize_t count;
        const char *chars = PyUnicode_AsUTF8AndSize(value, &count);
        if (!chars) {
            PyErr_Clear(); /* half of a surrogate pair */
            return false;
        }
        return plain_put_chars(writer, 0x8c, 'X', chars, count); /* SHORT_BINUNICODE, BINUNICODE */
    }
    else if (PyBytes_CheckExact(value))
        return plain_put_chars(writer, 'C', 'B', PyBytes_AsString(value), PyBytes_Size(value)); /* SHORT_BINBYTES, BINBYTES */
    else if (PyTuple_CheckExact(value))
        return plain_put_tuple(writer, value, depth);
    else if (PyFloat_CheckExact(value))
        plain_put_float(writer, PyFloat_AsDouble(value));
    else if (PyDict_CheckExact(value) && !writer->has_dict && !PyDict_Size(value)) {
        writer->has_dict = true;
        plain_put_op(writer, '}'); /* EMPTY_DICT */
    }
    else
        return false;
    return true;
}

static const uint8_t plain_protocol[2] = {0x80, 5}; /* PROTO */

static PyObject *native_dumps_plain(PyObject *Py_UNUSED(module), PyObject *value)
{
    plain_writer measured = {.size = sizeof plain_protocol + 1};
    if (!plain_write(&measured, value, 0) || measured.size > MPW_PLAIN_BYTES_MAX)
        return none();
    PyObject *data = PyBytes_FromStringAndSize(NULL, measured.size);
    if (!data)
        return NULL;
    plain_writer writer = {.at = (uint8_t *)PyBytes_AsString(data)};
    plain_put(&writer, plain_protocol, sizeof plain_protocol);
    plain_write(&writer, value, 0);
    plain_put_op(&writer, '.'); /* STOP */
    return data;
}

typedef struct {
    const uint8_t *at, *end;
    PyObject *items[MPW_PLAIN_ITEMS_MAX];
    int count;
    int marks[MPW_PLAIN_DEPTH_MAX];
    int mark_count;
} plain_reader;

/* The number of so many bytes that comes next; false if there are not so many. */
static bool plain_take(plain_reader *reader, size_t count, uint64_t *number)
{
    if ((size_t)(reader->end - reader->at) < count)
        return false;
    *number = 0;
    memcpy(number, reader->at, count);
    reader->at += count;
    return true;
}

/* The characters that come next, after their count. */
static const char *plain_take_chars(plain_reader *reader, size_t count_bytes, uint64_t *count)
{
    if (!plain_take(reader, count_bytes, count) || (uint64_t)(reader->end - reader->at) < *count)
        return NULL;
    const char *chars = (const char *)reader->at;
    reader->at += *count;
    return chars;
}

/* A tuple of the uppermost so many items, which it takes. */
static PyObject *plain_tuple(plain_reader *reader, int count)
{
    if (count > reader->count || (reader->mark_count && reader->count - count < reader->marks[reader->mark_count - 1]))
        return NULL;
    PyObject *tuple = PyTuple_New(count);
    if (tuple) {
        reader->count -= count;
        for (int i = 0; i < count; i++)
            PyTuple_SetItem(tuple, i, reader->items[reader->count + i]);
    }
    return tuple;
}

/* The value that an opcode makes; NULL if it is none of these, or something is wrong with it. */
static PyObject *plain_value(plain_reader *reader, uint8_t op)
{
    uint64_t number;
    const char *chars;
    switch (op) {
    case 'N':
        return none();
    case 0x88:
    case 0x89:
        return PyBool_FromLong(op == 0x88);
    case 'K':
        return plain_take(reader, 1, &number) ? PyLong_FromLong((long)number) : NULL;
    case 'J':
        return plain_take(reader, 4, &number) ? PyLong_FromLong((int32_t)number) : NULL;
    case 0x8a:
        if (!plain_take(reader, 1, &number) || number != 8 || !plain_take(reader, 8, &number))
            return NULL;
        return PyLong_FromLongLong((int64_t)number);
    case 'G': {
        double value;
        if (!plain_take(reader, 8, &number))
            return NULL;
        number = __builtin_bswap64(number);
        memcpy(&value, &number, sizeof value);
        return PyFloat_FromDouble(value);
    }
    case 0x8c:
    case 'X':
        chars = plain_take_chars(reader, op == 'X' ? 4 : 1, &number);
        return chars ? PyUnicode_DecodeUTF8(chars, (Py_ssize_t)number, NULL) : NULL;
    case 'C':
    case 'B':
        chars = plain_take_chars(reader, op == 'B' ? 4 : 1, &number);
        return chars ? PyBytes_FromStringAndSize(chars, (Py_ssize_t)number) : NULL;
    case '}':
        return PyDict_New();
    case ')':
        return PyTuple_New(0);
    case 0x85:
    case 0x86:
    case 0x87:
        return plain_tuple(reader, op - 0x84);
    case 't':
        return reader->mark_count ? plain_tuple(reader, reader->count - reader->marks[--reader->mark_count]) : NULL;
    default:
        return NULL;
    }
}

/* The value of a pickle; NULL, and perhaps an error, if that is for the pickle module to say. */
static PyObject *plain_read(plain_reader *reader)
{
    while (reader->at < reader->end) {
        uint8_t op = *reader->at++;
        if (op == '.')
            return reader->count == 1 && !reader->mark_count ? reader->items[--reader->count] : NULL;
        if (op == '(') {
            if (reader->mark_count == MPW_PLAIN_DEPTH_MAX)
                return NULL;
            reader->marks[reader->mark_count++] = reader->count;
            continue;
        }
        PyObject *value = reader->count < MPW_PLAIN_ITEMS_MAX ? plain_value(reader, op) : NULL;
        if (!value)
            return NULL;
        reader->items[reader->count++] = value;
    }
    return NULL;
}

/* The value of these bytes; NULL, without an error, if that is for the pickle module to say. */
static PyObject *plain_loaded(const uint8_t *data, Py_ssize_t size)
{
    if (size <= (Py_ssize_t)sizeof plain_protocol || memcmp(data, plain_protocol, sizeof plain_protocol))
        return NULL;
    plain_reader reader = {.at = data + sizeof plain_protocol, .end = data + size};
    PyObject *value = plain_read(&reader);
    while (reader.count)
        Py_DECREF(reader.items[--reader.count]);
    if (!value)
        PyErr_Clear();
    return value;
}

static PyObject *native_loads_plain(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    if (!argument_count(nargs, 2, "loads_plain"))
        return NULL;
    PyObject *value = NULL;
    if (PyBytes_CheckExact(args[0]))
        value = plain_loaded((const uint8_t *)PyBytes_AsString(args[0]), PyBytes_Size(args[0]));
    return value ? value : PyObject_CallFunctionObjArgs(args[1], args[0], NULL);
}
