/* mpworker.ipc._native: the few things that need atomics, as Python types; and those of arenas (arena.h), which must be
 * done in one step.
 *
 * Ring, Bell and Claims are thin: the protocols and the reasons are in ring.h, bell.h and claims.h, which know nothing of
 * Python. Built for the limited API of CPython 3.11, so that one binary serves every later version.
 *
 * Threads: the GIL is held from the first look at a ring to the last, which makes a Ring's producer single even when many
 * threads push. Two methods need more care: Bell.wait releases the GIL, and works on values copied before; and pop makes
 * tuples, which on 3.11 may collect garbage, whose finalizers may run anything, a pop too: so each is made before its record
 * is taken.
 *
 * Forks: the shared mappings are absent in a fork (MADV_DONTFORK), so every method first compares the fork count it was
 * made under; in a fork it raises instead of touching memory that is not there.
 */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <structmember.h>

#include <limits.h>
#include <pthread.h>
#include <sys/prctl.h>

#include "bell.h"
#include "claims.h"
#include "clock.h"
#include "heartbeat.h"
#include "ring.h"
#include "start.h"

typedef struct {
    PyObject *ring_corrupt;
    PyObject *made_before_fork;
    PyTypeObject *ring_type;
    PyTypeObject *bell_type;
    PyTypeObject *claims_type;
    PyTypeObject *attempt_type;
} module_state;

static unsigned fork_count; /* written only in a fresh fork, which has one thread */

static void count_fork(void)
{
    fork_count++;
}

/* What every type here begins with: a view of shared memory and the fork count it was made under. */
typedef struct {
    PyObject_HEAD
    Py_buffer view;
    unsigned fork_count;
} mapped_object;

typedef struct {
    mapped_object base;
    mpw_ring ring;
    bool corrupt;
} ring_object;

typedef struct {
    mapped_object base;
    mpw_bell_word *word;
    int fd;
    bool waiting; /* under the GIL */
    mpw_habit habit; /* so */
    mpw_patience patience; /* so */
    bool spun; /* so: the last wait has spun for long, and in vain */
} bell_object;

typedef struct {
    mapped_object base;
    mpw_claims *page;
    mpw_entry *entries; /* NULL: nobody notes what is offered */
    mpw_heartbeat heartbeat;
    Py_ssize_t slots;
    bool inside; /* under the GIL: a call of run() is under way, or was the last thing and has raised */
} claims_object;

static module_state *state_of(PyObject *self)
{
    return PyType_GetModuleState(Py_TYPE(self)); /* the types are final, so this is always our module */
}

static bool usable(PyObject *self)
{
    if (((mapped_object *)self)->fork_count == fork_count)
        return true;
    PyErr_SetString(state_of(self)->made_before_fork, "made before fork: shared memory is not carried into a fork");
    return false;
}

/* A new object of one of our types, all zero; the limited API has no macro for that. */
static PyObject *object_new(PyTypeObject *type)
{
    return ((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
}

static void object_free(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type); /* a heap type is owned by its instances */
}

static void mapped_dealloc(PyObject *self)
{
    mapped_object *mapped = (mapped_object *)self;
    /* In a fork the buffer is never let go: an mmap that closes there would unmap whatever came to lie at its addresses. */
    if (mapped->view.obj && mapped->fork_count == fork_count)
        PyBuffer_Release(&mapped->view);
    object_free(self);
}

/* Allocate an object that holds a writable view of `buffer`. */
static PyObject *mapped_new(PyTypeObject *type, PyObject *buffer)
{
    PyObject *self = object_new(type);
    if (!self)
        return NULL;
    mapped_object *mapped = (mapped_object *)self;
    mapped->fork_count = fork_count;
    if (PyObject_GetBuffer(buffer, &mapped->view, PyBUF_WRITABLE) < 0) {
        mapped->view.obj = NULL;
        Py_DECREF(self);
        return NULL;
    }
    return self;
}

/* `size` bytes at `offset` of the view, or NULL with ValueError. */
static void *mapped_at(PyObject *self, Py_ssize_t offset, Py_ssize_t size, const char *what)
{
    mapped_object *mapped = (mapped_object *)self;
    if (offset < 0 || size < 0 || offset % MPW_CACHE_LINE || offset > mapped->view.len ||
        size > mapped->view.len - offset || (uintptr_t)mapped->view.buf % MPW_CACHE_LINE) {
        PyErr_Format(PyExc_ValueError, "%s of %zd bytes at offset %zd does not fit a buffer of %zd bytes aligned to %d",
                     what, size, offset, mapped->view.len, MPW_CACHE_LINE);
        return NULL;
    }
    return (char *)mapped->view.buf + offset;
}

/* Not Py_RETURN_NONE, nor Py_RETURN_TRUE: the headers of 3.12 and later count no reference there, since there such objects
 * are immortal. Built with those, this module would take None away from a 3.11. */
static PyObject *none(void)
{
    Py_IncRef(Py_None);
    return Py_None;
}

static PyObject *os_error(int error, const char *call)
{
    PyObject *value = Py_BuildValue("iN", error, PyUnicode_FromFormat("%s: %s", call, strerror(error)));
    if (value) {
        PyErr_SetObject(PyExc_OSError, value);
        Py_DECREF(value);
    }
    return NULL;
}

static bool get_u64(PyObject *value, uint64_t *out)
{
    *out = PyLong_AsUnsignedLongLong(value);
    return !(*out == (uint64_t)-1 && PyErr_Occurred());
}

static bool argument_count(Py_ssize_t given, Py_ssize_t wanted, const char *name)
{
    if (given == wanted)
        return true;
    PyErr_Format(PyExc_TypeError, "%s() takes %zd arguments (%zd given)", name, wanted, given);
    return false;
}

/* ---------------------------------------------------------------- processes */

static PyObject *native_prctl(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    if (!argument_count(nargs, 2, "prctl"))
        return NULL;
    long option = PyLong_AsLong(args[0]), value = PyLong_AsLong(args[1]);
    if (PyErr_Occurred())
        return NULL;
    if (option < INT_MIN || option > INT_MAX || prctl((int)option, value, 0L, 0L, 0L) < 0)
        return os_error(option < INT_MIN || option > INT_MAX ? EINVAL : errno, "prctl");
    return none();
}

/* The pointers of a list of bytes, and NULL; NULL with an exception. They live as long as the list is left alone. */
static char **strings_of(PyObject *list)
{
    Py_ssize_t count = PyList_Size(list);
    char **strings = count < 0 ? NULL : PyMem_Malloc((size_t)(count + 1) * sizeof *strings);
    if (!strings)
        return count < 0 ? NULL : (char **)PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < count; i++) {
        if (PyBytes_AsStringAndSize(PyList_GetItem(list, i), &strings[i], NULL) < 0) { /* also for a NUL inside */
            PyMem_Free(strings);
            return NULL;
        }
    }
    strings[count] = NULL;
    return strings;
}

static PyObject *native_start(PyObject *Py_UNUSED(module), PyObject *args)
{
    mpw_start start = {0};
    PyObject *supervisor, *nursery, *environment, *started = NULL;
    Py_ssize_t pid_at;
    if (!PyArg_ParseTuple(args, "yO!nO!O!iii|O!:start", &start.path, &PyList_Type, &supervisor, &pid_at, &PyList_Type, &nursery,
                          &PyList_Type, &environment, &start.client_end, &start.supervisor_end, &start.nursery_end,
                          &PyList_Type, &started))
        return NULL;
    if (pid_at < 0 || pid_at >= PyList_Size(supervisor))
        return PyErr_Format(PyExc_ValueError, "there is no argument %zd", pid_at);
    char text[MPW_START_PID_CHARS];
    char **arguments[3] = {strings_of(supervisor), NULL, NULL};
    if (arguments[0])
        arguments[1] = strings_of(nursery);
    if (arguments[1])
        arguments[2] = strings_of(environment);
    pid_t pid = -1;
    if (arguments[2]) {
        arguments[0][pid_at] = text;
        start.supervisor = arguments[0];
        start.pid_at = (size_t)pid_at;
        start.nursery = PyList_Size(nursery) ? arguments[1] : NULL;
        start.environment = arguments[2];
        pid = mpw_start_both(&start);
        if (pid < 0)
            PyErr_SetFromErrno(PyExc_OSError);
    }
    for (int i = 0; i < 3; i++)
        PyMem_Free(arguments[i]);
    PyObject *number = pid < 0 ? NULL : PyLong_FromLong(pid);
    if (number && started && PyList_Append(started, number) < 0)
        Py_CLEAR(number);
    return number;
}

#include "arena.h"
#include "mainthread.h"
#include "plain.h"

static PyObject *native_keep(PyObject *Py_UNUSED(module), PyObject *object)
{
    Py_INCREF(object);
    return none();
}

static PyMethodDef module_methods[] = {
    {"keep", native_keep, METH_O,
     "keep(object)\n\nHave an object live as long as the process: also at its end nothing of it is undone."},
    {"detach_all", (PyCFunction)(void (*)(void))native_detach_all, METH_FASTCALL,
     "detach_all(returns=..., alone=False)\n\nDetach each loan of this process, or each that returns to this list: see arena.h. "
     "Alone: nobody writes to what they lend meanwhile, so that nothing of them keeps the arena."},
    {"prctl", (PyCFunction)(void (*)(void))native_prctl, METH_FASTCALL,
     "prctl(option, value)\n\nThe system call of that name, which the standard library reaches by ctypes alone: an import."},
    {"to_main_thread", native_to_main_thread, METH_O,
     "to_main_thread(number)\n\nHave the handler that this signal has run in the main thread, whichever thread the signal "
     "comes to."},
    {"dumps_plain", native_dumps_plain, METH_O,
     "dumps_plain(value)\n\nThe pickle of a small plain value; None if it is none: see plain.h."},
    {"loads_plain", (PyCFunction)(void (*)(void))native_loads_plain, METH_FASTCALL,
     "loads_plain(data, loads)\n\nThe value of the pickle of a plain value; what loads(data) says of anything else."},
    {"start", native_start, METH_VARARGS,
     "start(path, supervisor, pid_at, nursery, environment, client_end, supervisor_end, nursery_end, started=...) -> "
     "int\n\nStart a supervisor and its first nursery, if that has arguments; the supervisor's process id, which is put into "
     "the list `started`, too: see start.h."},
    {NULL, NULL, 0, NULL},
};

/* ---------------------------------------------------------------- Ring */

static PyObject *ring_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *buffer;
    Py_ssize_t ctl_offset, data_offset, capacity;
    static char *names[] = {"", "", "", "", NULL}; /* positional only */
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Onnn:Ring", names, &buffer, &ctl_offset, &data_offset, &capacity))
        return NULL;
    if (capacity < 0 || !mpw_ring_capacity_ok((uint64_t)capacity))
        return PyErr_Format(PyExc_ValueError, "ring capacity %zd is not a power of two from %u to %u bytes", capacity,
                            MPW_RING_MIN_CAPACITY, MPW_RING_MAX_CAPACITY);
    PyObject *self = mapped_new(type, buffer);
    if (!self)
        return NULL;
    void *ctl = mapped_at(self, ctl_offset, sizeof(mpw_ring_ctl), "a ring's control block");
    void *data = ctl ? mapped_at(self, data_offset, capacity, "a ring") : NULL;
    if (!data) {
        Py_DECREF(self);
        return NULL;
    }
    mpw_ring_attach(&((ring_object *)self)->ring, ctl, data, (uint64_t)capacity);
    return self;
}

static PyObject *ring_condemn(PyObject *self)
{
    ring_object *object = (ring_object *)self;
    object->corrupt = true; /* for good: after one impossible value no other means anything */
    return PyErr_Format(state_of(self)->ring_corrupt,
                        "the peer wrote an impossible value into the ring (capacity %llu, position %llu)",
                        (unsigned long long)object->ring.capacity, (unsigned long long)object->ring.own);
}

static bool ring_usable(PyObject *self)
{
    if (!usable(self))
        return false;
    if (!((ring_object *)self)->corrupt)
        return true;
    ring_condemn(self);
    return false;
}

/* The kind, flags and size of a record from its arguments, and a view of its payload, which the caller releases. */
static bool record_arguments(PyObject *kind, PyObject *flags, PyObject *payload, mpw_record_header *header, Py_buffer *view)
{
    uint64_t kind_number, flag_bits;
    if (!get_u64(kind, &kind_number) || !get_u64(flags, &flag_bits))
        return false;
    if (kind_number > UINT16_MAX || flag_bits > UINT16_MAX) {
        PyErr_SetString(PyExc_ValueError, "kind and flags are 16-bit numbers");
        return false;
    }
    header->kind = (uint16_t)kind_number;
    header->flags = (uint16_t)flag_bits;
    return PyObject_GetBuffer(payload, view, PyBUF_SIMPLE) == 0;
}

/* Push a record with this payload, and release that. */
static mpw_status push_view(mpw_ring *ring, mpw_record_header *header, Py_buffer *view)
{
    mpw_status status = MPW_TOO_LARGE;
    if ((uint64_t)view->len <= mpw_ring_max_payload(ring->capacity)) {
        header->size = (uint32_t)view->len;
        status = mpw_ring_push(ring, *header, view->buf);
    }
    PyBuffer_Release(view);
    return status;
}

static PyObject *ring_push(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    mpw_ring *ring = &((ring_object *)self)->ring;
    mpw_record_header header;
    Py_buffer payload;
    if (!argument_count(nargs, 6, "push") || !ring_usable(self) || !get_u64(args[2], &header.a) ||
        !get_u64(args[3], &header.b) || !get_u64(args[4], &header.c) ||
        !record_arguments(args[0], args[1], args[5], &header, &payload))
        return NULL;
    Py_ssize_t size = payload.len;
    switch (push_view(ring, &header, &payload)) {
    case MPW_OK:
        return PyBool_FromLong(1);
    case MPW_FULL:
        return PyBool_FromLong(0);
    case MPW_TOO_LARGE:
        return PyErr_Format(PyExc_ValueError, "a payload of %zd bytes exceeds this ring's bound of %llu", size,
                            (unsigned long long)mpw_ring_max_payload(ring->capacity));
    default:
        return ring_condemn(self);
    }
}

/* Both or neither: between the two no other thread and no signal handler sees the one without the other. */
static PyObject *ring_push_keeping(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (!argument_count(nargs, 8, "push_keeping"))
        return NULL;
    PyObject *kept = args[0], *key = args[4];
    if (!PyDict_Check(kept) || !PyLong_Check(key)) {
        PyErr_SetString(PyExc_TypeError, "push_keeping() takes a dict, and a number to keep it by");
        return NULL;
    }
    if (PyDict_SetItem(kept, key, args[1]) < 0)
        return NULL;
    PyObject *pushed = ring_push(self, args + 2, 6);
    if (pushed != Py_True) {
        PyObject *type, *value, *trace;
        PyErr_Fetch(&type, &value, &trace);
        PyDict_DelItem(kept, key);
        PyErr_Restore(type, value, trace);
    }
    return pushed;
}

/* Fill an empty tuple of six; false if there is no memory. */
static bool fill_tuple(PyObject *tuple, const mpw_record *record)
{
    PyObject *items[6] = {
        PyLong_FromLong(record->header.kind),
        PyLong_FromLong(record->header.flags),
        PyLong_FromUnsignedLongLong(record->header.a),
        PyLong_FromUnsignedLongLong(record->header.b),
        PyLong_FromUnsignedLongLong(record->header.c),
        PyBytes_FromStringAndSize((const char *)record->payload, (Py_ssize_t)record->header.size),
    };
    bool whole = true;
    for (int i = 0; i < 6; i++) {
        whole = whole && items[i];
        PyTuple_SetItem(tuple, i, items[i]); /* takes the reference */
    }
    return whole;
}

static PyObject *ring_pop(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    ring_object *object = (ring_object *)self;
    mpw_ring *ring = &object->ring;
    uint64_t limit;
    if (!argument_count(nargs, 2, "pop") || !ring_usable(self) || !get_u64(args[1], &limit))
        return NULL;
    if (!PyList_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "pop() appends to a list");
        return NULL;
    }
    uint64_t count = 0;
    mpw_status status = MPW_OK;
    bool failed = false;
    mpw_record record;
    while (count < limit && status == MPW_OK && !failed && mpw_ring_readable(ring)) {
        PyObject *tuple = PyTuple_New(6); /* first: a finalizer that it runs may pop from this ring too */
        mpw_ring before = *ring;
        failed = !tuple;
        status = failed ? MPW_OK : mpw_ring_next(ring, &record);
        if (!failed && status == MPW_OK) {
            failed = !fill_tuple(tuple, &record) || PyList_Append(args[0], tuple) < 0;
            if (failed)
                *ring = before; /* out of memory: the record stays in the ring */
            else
                count++;
        }
        Py_XDECREF(tuple);
    }
    object->corrupt |= status == MPW_CORRUPT; /* after whole records were handed over, the next call says so */
    if (count)
        mpw_ring_release(ring);
    if (failed)
        return NULL;
    if (object->corrupt && count == 0)
        return ring_condemn(self);
    return PyLong_FromUnsignedLongLong(count);
}

static PyObject *ring_readable(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return ring_usable(self) ? PyBool_FromLong(mpw_ring_readable(&((ring_object *)self)->ring)) : NULL;
}

static PyObject *ring_fits(PyObject *self, PyObject *size)
{
    mpw_ring *ring = &((ring_object *)self)->ring;
    uint64_t payload;
    if (!ring_usable(self) || !get_u64(size, &payload))
        return NULL;
    mpw_status status =
        payload > mpw_ring_max_payload(ring->capacity) ? MPW_FULL : mpw_ring_room(ring, mpw_ring_need(ring, payload));
    if (status == MPW_CORRUPT)
        return ring_condemn(self);
    return PyBool_FromLong(status == MPW_OK);
}

static PyObject *ring_fill(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return ring_usable(self) ? PyLong_FromUnsignedLongLong(mpw_ring_fill(&((ring_object *)self)->ring)) : NULL;
}

static PyObject *ring_max_payload(PyObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(mpw_ring_max_payload(((ring_object *)self)->ring.capacity));
}

static PyMethodDef ring_methods[] = {
    {"push", (PyCFunction)(void (*)(void))ring_push, METH_FASTCALL,
     "push(kind, flags, a, b, c, payload) -> bool\n\nPublish one record; False when the ring is full."},
    {"push_keeping", (PyCFunction)(void (*)(void))ring_push_keeping, METH_FASTCALL,
     "push_keeping(kept, value, kind, flags, a, b, c, payload) -> bool\n\nThe same, and if it is published kept[a] is the "
     "value."},
    {"pop", (PyCFunction)(void (*)(void))ring_pop, METH_FASTCALL,
     "pop(into, limit) -> int\n\nAppend up to limit records (kind, flags, a, b, c, payload) to the list; how many."},
    {"readable", ring_readable, METH_NOARGS, "readable() -> bool\n\nIs there a record to pop?"},
    {"fits", ring_fits, METH_O, "fits(payload_bytes) -> bool\n\nWould a push of this size succeed now?"},
    {"fill", ring_fill, METH_NOARGS, "fill() -> int\n\nBytes in the ring, as either end last published them."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef ring_getset[] = {
    {"max_payload", ring_max_payload, NULL, "The largest payload of one record, in bytes.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot ring_slots[] = {
    {Py_tp_doc, "Ring(buffer, ctl_offset, data_offset, capacity)\n\nOne end of a ring in shared memory; see ring.h."},
    {Py_tp_new, ring_new},
    {Py_tp_dealloc, mapped_dealloc},
    {Py_tp_methods, ring_methods},
    {Py_tp_getset, ring_getset},
    {0, NULL},
};

static PyType_Spec ring_spec = {"mpworker.ipc._native.Ring", sizeof(ring_object), 0,
                                Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, ring_slots};

/* ---------------------------------------------------------------- Bell */

static PyObject *bell_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *buffer;
    Py_ssize_t offset;
    int fd;
    static char *names[] = {"", "", "", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Oni:Bell", names, &buffer, &offset, &fd))
        return NULL;
    PyObject *self = mapped_new(type, buffer);
    if (!self)
        return NULL;
    bell_object *bell = (bell_object *)self;
    bell->fd = fd;
    bell->word = mapped_at(self, offset, sizeof(mpw_bell_word), "a bell");
    if (!bell->word)
        Py_CLEAR(self);
    return self;
}

static PyObject *bell_write(bell_object *bell)
{
    int error = mpw_bell_write(bell->fd);
    return error ? os_error(error, "write to a bell") : none();
}

static PyObject *bell_ring(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    bell_object *bell = (bell_object *)self;
    if (!usable(self))
        return NULL;
    if (!mpw_bell_pending(bell->word))
        return none();
    return bell_write(bell);
}

static PyObject *bell_ring_room(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    bell_object *bell = (bell_object *)self;
    if (!usable(self))
        return NULL;
    if (!mpw_bell_room_pending(bell->word))
        return none();
    return bell_write(bell);
}

static PyObject *bell_want_room(PyObject *self, PyObject *wanted)
{
    int truth = PyObject_IsTrue(wanted);
    if (truth < 0 || !usable(self))
        return NULL;
    mpw_bell_want_room(((bell_object *)self)->word, truth);
    return none();
}

static PyObject *bell_wake(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return usable(self) ? bell_write((bell_object *)self) : NULL;
}

static PyObject *bell_drain(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (!usable(self))
        return NULL;
    int error = mpw_bell_drain(((bell_object *)self)->fd);
    return error ? os_error(error, "read a bell") : none();
}

static PyObject *bell_arm(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (!usable(self))
        return NULL;
    mpw_bell_arm(((bell_object *)self)->word);
    return none();
}

static PyObject *bell_disarm(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (!usable(self))
        return NULL;
    mpw_bell_disarm(((bell_object *)self)->word);
    return none();
}

static PyObject *bell_wait(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    bell_object *bell = (bell_object *)self;
    mpw_watch watch = {0};
    uint64_t need, spin_ns, longest_ns = 0, deadline_ns = UINT64_MAX;
    if (!argument_count(nargs, nargs == 8 ? 8 : 7, "wait") || !usable(self) || !get_u64(args[2], &need) ||
        !get_u64(args[5], &spin_ns) || (nargs == 8 && !get_u64(args[7], &longest_ns)))
        return NULL;
    double timeout = PyFloat_AsDouble(args[3]);
    int by_habit = PyObject_IsTrue(args[6]);
    if ((timeout == -1.0 && PyErr_Occurred()) || by_habit < 0)
        return NULL;
    long also_fd = PyLong_AsLong(args[4]);
    if (also_fd < -1 || also_fd > INT_MAX || (also_fd == -1 && PyErr_Occurred())) {
        if (!PyErr_Occurred())
            PyErr_Format(PyExc_ValueError, "%ld is neither a file descriptor nor -1", also_fd);
        return NULL;
    }
    for (int i = 0; i < 2; i++) {
        if (args[i] == Py_None)
            continue;
        if (Py_TYPE(args[i]) != state_of(self)->ring_type) {
            PyErr_SetString(PyExc_TypeError, "wait() watches rings, or None");
            return NULL;
        }
        if (!ring_usable(args[i]))
            return NULL;
    }
    if (args[0] != Py_None) {
        mpw_ring *inbound = &((ring_object *)args[0])->ring;
        watch.tail = &inbound->ctl->tail;
        watch.popped = inbound->own;
    }
    if (args[1] != Py_None) {
        mpw_ring *outbound = &((ring_object *)args[1])->ring;
        if (need > mpw_ring_max_payload(outbound->capacity)) {
            PyErr_SetString(PyExc_ValueError, "wait() for room that the ring never has");
            return NULL;
        }
        watch.head = &outbound->ctl->head;
        watch.pushed = outbound->own;
        watch.fill_max = outbound->capacity - mpw_ring_need(outbound, need);
        watch.capacity = outbound->capacity;
    }
    if (timeout >= 0 && timeout < 1e9)
        deadline_ns = mpw_now_ns() + (uint64_t)(timeout * 1e9);
    if (mpw_watch_ready(&watch))
        return PyLong_FromLong(1);
    if (timeout == 0)
        return PyLong_FromLong(mpw_bell_look(&watch, (int)also_fd));
    int result;
    bool learns = by_habit && spin_ns, sleeps = bell->spun;
    bool is_patient = !by_habit && longest_ns > spin_ns && !sleeps;
    uint64_t begun_ns = learns || is_patient ? mpw_now_ns() : 0;
    bell->spun = false;
    if (is_patient && mpw_patience_spins(&bell->patience)) {
        bell->waiting = true;
        Py_BEGIN_ALLOW_THREADS
        result = mpw_bell_spin(&watch, deadline_ns, longest_ns);
        Py_END_ALLOW_THREADS
        bell->waiting = false;
        mpw_patience_learn(&bell->patience, longest_ns, true, mpw_now_ns() - begun_ns);
        /* Not to sleep from here: a signal that has come meanwhile would not end that. Whoever waits looks whether there is
         * something to do, and comes again to sleep. */
        bell->spun = !result;
        return PyLong_FromLong(1);
    }
    uint64_t worth_ns = learns ? mpw_habit_spin(&bell->habit, spin_ns) : sleeps ? 0 : spin_ns;
    bell->waiting = true;
    Py_BEGIN_ALLOW_THREADS
    result = mpw_bell_wait(bell->word, bell->fd, &watch, (int)also_fd, deadline_ns, worth_ns);
    Py_END_ALLOW_THREADS
    bell->waiting = false;
    if (learns && worth_ns)
        mpw_habit_learn(&bell->habit, spin_ns, mpw_now_ns() - begun_ns);
    if (is_patient)
        mpw_patience_learn(&bell->patience, longest_ns, false, mpw_now_ns() - begun_ns);
    if (result >= 0)
        return PyLong_FromLong(result);
    if (errno != EINTR)
        return os_error(errno, "wait for a bell");
    /* Not once more from here: the handler may have read what is waited for, or closed the bell. */
    return PyErr_CheckSignals() < 0 ? NULL : PyLong_FromLong(1);
}

static PyMethodDef bell_methods[] = {
    {"ring", bell_ring, METH_NOARGS, "ring()\n\nWake the owner if it sleeps; to be called after a push or a pop."},
    {"ring_room", bell_ring_room, METH_NOARGS,
     "ring_room()\n\nWake the owner if it sleeps and wants room; to be called after a pop that nothing else answers."},
    {"want_room", bell_want_room, METH_O, "want_room(wanted)\n\nOwner: from the next arm() on, be woken by ring_room() too."},
    {"wake", bell_wake, METH_NOARGS, "wake()\n\nWake the owner whether it sleeps or not (from a thread or a handler)."},
    {"drain", bell_drain, METH_NOARGS,
     "drain()\n\nOwner: take out what woke it, where that was not wait(); then arm() and look before the next sleep."},
    {"arm", bell_arm, METH_NOARGS, "arm()\n\nSay that this side is about to sleep; look at the rings once more after it."},
    {"disarm", bell_disarm, METH_NOARGS, "disarm()\n\nSay that this side is awake."},
    {"wait", (PyCFunction)(void (*)(void))bell_wait, METH_FASTCALL,
     "wait(inbound, outbound, need, timeout, also_fd, spin_ns, by_habit[, longest_ns]) -> int\n\n"
     "Sleep until inbound has a record, outbound has room for need payload bytes, the bell was rung or a signal was handled "
     "(bit 1), also_fd is readable (bit 2), or timeout seconds are over (0; negative waits for ever). Spins for spin_ns first; "
     "by_habit, only where waits of that kind are usually short enough for it; else for longest_ns where that has turned out "
     "to save more than it costs: 1 if that was in vain, and the next call sleeps at once. With a timeout of 0 nobody is "
     "disturbed who sleeps."},
    {NULL, NULL, 0, NULL},
};

static PyObject *bell_waiting(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(((bell_object *)self)->waiting);
}

static PyGetSetDef bell_getset[] = {
    {"waiting", bell_waiting, NULL, "Is a thread in wait(), and not in a signal handler that runs on top of it?", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot bell_slots[] = {
    {Py_tp_doc, "Bell(buffer, offset, fd)\n\nOne side's bell: a word in shared memory and a pipe; see bell.h."},
    {Py_tp_new, bell_new},
    {Py_tp_dealloc, mapped_dealloc},
    {Py_tp_methods, bell_methods},
    {Py_tp_getset, bell_getset},
    {0, NULL},
};

static PyType_Spec bell_spec = {"mpworker.ipc._native.Bell", sizeof(bell_object), 0,
                                Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, bell_slots};

/* ---------------------------------------------------------------- Claims */

static PyObject *claims_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *buffer;
    Py_ssize_t slots, notes = 0;
    static char *names[] = {"", "", "", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "On|n:Claims", names, &buffer, &slots, &notes))
        return NULL;
    if (slots < 1 || slots > 256)
        return PyErr_Format(PyExc_ValueError, "a claim page has 1 to 256 slots, not %zd", slots);
    PyObject *self = mapped_new(type, buffer);
    if (!self)
        return NULL;
    claims_object *claims = (claims_object *)self;
    claims->slots = slots;
    claims->page = mapped_at(self, 0, (Py_ssize_t)(sizeof(mpw_claims) + (size_t)slots * sizeof(mpw_slot)), "a claim page");
    if (claims->page && notes)
        claims->entries = mapped_at(self, notes, slots * (Py_ssize_t)sizeof(mpw_entry), "what is offered in a claim page");
    if (!claims->page || (notes && !claims->entries))
        Py_CLEAR(self);
    return self;
}

/* The arguments (slot[, generation[, cursor]]) that all methods share. */
static mpw_slot *slot_arguments(PyObject *self, PyObject *const *args, Py_ssize_t nargs, Py_ssize_t wanted,
                                const char *name, uint64_t *values)
{
    claims_object *claims = (claims_object *)self;
    uint64_t index;
    if (!argument_count(nargs, wanted, name) || !usable(self) || !get_u64(args[0], &index))
        return NULL;
    if (index >= (uint64_t)claims->slots)
        return (void *)PyErr_Format(PyExc_IndexError, "slot %llu of %zd", (unsigned long long)index, claims->slots);
    for (Py_ssize_t i = 1; i < wanted; i++) {
        if (!get_u64(args[i], &values[i - 1]))
            return NULL;
    }
    if (wanted > 1 && values[0] > MPW_GENERATION_MAX)
        return (void *)PyErr_Format(PyExc_ValueError, "generation %llu is over 2**62 - 1", (unsigned long long)values[0]);
    return &claims->page->slots[index];
}

/* The slot of an offer of this task (args: slot, generation, then `between` others, task, range), which is noted; NULL with an
 * error. Where the page has no notes the last two may be left out. */
static mpw_slot *offer_arguments(PyObject *self, PyObject *const *args, Py_ssize_t nargs, Py_ssize_t between,
                                 const char *name, uint64_t *generation, uint64_t *task, uint64_t *range)
{
    claims_object *claims = (claims_object *)self;
    Py_ssize_t wanted = between + (nargs == between + 2 && !claims->entries ? 2 : 4);
    mpw_slot *slot = argument_count(nargs, wanted, name) ? slot_arguments(self, args, 2, 2, name, generation) : NULL;
    if (!slot)
        return NULL;
    if (!*generation)
        return (void *)PyErr_Format(PyExc_ValueError, "generation 0 stands for none");
    *task = *range = 0;
    if (wanted == between + 4 && !(get_u64(args[nargs - 2], task) && get_u64(args[nargs - 1], range)))
        return NULL;
    return slot;
}

static void note_and_offer(PyObject *self, mpw_slot *slot, uint64_t generation, uint64_t task, uint64_t range)
{
    claims_object *claims = (claims_object *)self;
    if (claims->entries)
        mpw_claim_note(&claims->entries[slot - claims->page->slots], generation, task, range);
    mpw_claim_offer(slot, generation);
}

static PyObject *claims_offer(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    uint64_t generation, task, range;
    mpw_slot *slot = offer_arguments(self, args, nargs, 0, "offer", &generation, &task, &range);
    if (!slot)
        return NULL;
    note_and_offer(self, slot, generation, task, range);
    return none();
}

static PyObject *claims_send_offer(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    uint64_t generation, task, range;
    mpw_record_header header;
    Py_buffer payload;
    mpw_slot *slot = offer_arguments(self, args, nargs, 6, "send_offer", &generation, &task, &range);
    if (!slot)
        return NULL;
    PyObject *ring = args[2];
    if (Py_TYPE(ring) != state_of(self)->ring_type)
        return PyErr_Format(PyExc_ValueError, "an offer goes into a Ring");
    if (!ring_usable(ring) || !get_u64(args[5], &header.a) || !get_u64(args[6], &header.c) ||
        !record_arguments(args[3], args[4], args[7], &header, &payload))
        return NULL;
    header.b = generation;
    note_and_offer(self, slot, generation, task, range); /* first: whoever finds the record may claim it at once */
    mpw_status status = push_view(&((ring_object *)ring)->ring, &header, &payload);
    return status == MPW_CORRUPT ? ring_condemn(ring) : PyBool_FromLong(status == MPW_OK);
}

static PyObject *claims_claim(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    uint64_t generation;
    mpw_slot *slot = slot_arguments(self, args, nargs, 2, "claim", &generation);
    if (!slot)
        return NULL;
    uint64_t now = mpw_now_ns();
    return PyLong_FromUnsignedLongLong(mpw_claim_take(slot, generation, now) ? now : 0);
}

static PyObject *claims_revoke(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    uint64_t generation;
    mpw_slot *slot = slot_arguments(self, args, nargs, 2, "revoke", &generation);
    return slot ? PyBool_FromLong(mpw_claim_revoke(slot, generation)) : NULL;
}

static PyObject *claims_halt(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    uint64_t generation;
    mpw_slot *slot = slot_arguments(self, args, nargs, 2, "halt", &generation);
    if (!slot)
        return NULL;
    return PyLong_FromUnsignedLongLong(mpw_claim_halt(slot, generation));
}

/* One item; NULL with the exception that it raised. `inside` says afterwards, too, that it was the item that did. */
static PyObject *run_item(claims_object *claims, PyObject *call, PyObject *item, bool spread)
{
    Py_INCREF(item); /* the call may get hold of the list */
    claims->inside = true;
    PyObject *value = spread ? PyObject_CallObject(call, item) : PyObject_CallFunctionObjArgs(call, item, NULL);
    /* As between two byte codes: of a function in C nobody else would look. Whatever a handler raises is the item's. */
    if (value && PyErr_CheckSignals() < 0)
        Py_CLEAR(value);
    if (value)
        claims->inside = false;
    Py_DECREF(item);
    return value;
}

/* The loop over a chunk's items is here because it costs three times as much in Python, which is more than a short call
 * does. One look at the clock for an item: it is when the item begins, and tells whether results have waited for long. */
static PyObject *claims_run(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    claims_object *claims = (claims_object *)self;
    uint64_t generation, first, stop, flush_at_ns;
    if (!argument_count(nargs, 9, "run"))
        return NULL;
    mpw_slot *slot = slot_arguments(self, args, 2, 2, "run", &generation);
    PyObject *call = args[2], *items = args[3], *values = args[4];
    if (!slot || !get_u64(args[5], &first) || !get_u64(args[6], &stop) || !get_u64(args[8], &flush_at_ns))
        return NULL;
    int spread = PyObject_IsTrue(args[7]);
    if (spread < 0)
        return NULL;
    if (!PyList_Check(items) || !PyList_Check(values)) {
        PyErr_SetString(PyExc_TypeError, "run() takes a list of items and a list for their values");
        return NULL;
    }
    claims->inside = false;
    uint64_t index = first + (uint64_t)PyList_Size(values);
    bool waiting = index != first;
    for (; index < stop; index++) {
        if (!usable(self)) /* the call before was a fork's */
            return NULL;
        uint64_t now = mpw_now_ns();
        if (waiting && now > flush_at_ns)
            return PyBool_FromLong(0);
        if (!mpw_claim_step(slot, generation, index + 1, now))
            break;
        PyObject *item = PyList_GetItem(items, (Py_ssize_t)index);
        PyObject *value = item ? run_item(claims, call, item, spread) : NULL;
        if (!value)
            return NULL;
        int failed = PyList_Append(values, value);
        Py_DECREF(value);
        if (failed < 0)
            return NULL;
        waiting = true;
    }
    return PyBool_FromLong(1);
}

static PyObject *claims_inside(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(((claims_object *)self)->inside);
}

static PyObject *claims_peek(PyObject *self, PyObject *index)
{
    mpw_slot *slot = slot_arguments(self, &index, 1, 1, "peek", NULL);
    if (!slot)
        return NULL;
    /* acquire: pairs with the claim's acq_rel exchange and the step's release store; the start time is at least as new. */
    uint64_t word = atomic_load_explicit(&slot->word, memory_order_acquire);
    uint64_t cursor = atomic_load_explicit(&slot->cursor, memory_order_acquire);
    uint64_t started = atomic_load_explicit(&slot->started_ns, memory_order_relaxed);
    uint64_t halt = atomic_load_explicit(&slot->halt, memory_order_relaxed);
    return Py_BuildValue("KiKKK", (unsigned long long)(word >> 2), (int)(word & 3), (unsigned long long)started,
                         (unsigned long long)cursor, (unsigned long long)halt);
}

static PyObject *claims_beat(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (!usable(self))
        return NULL;
    return PyLong_FromUnsignedLongLong(
        atomic_load_explicit(&((claims_object *)self)->page->beat_ns, memory_order_relaxed));
}

static PyObject *claims_start_heartbeat(PyObject *self, PyObject *interval)
{
    claims_object *claims = (claims_object *)self;
    double seconds = PyFloat_AsDouble(interval);
    if (!usable(self) || (seconds == -1.0 && PyErr_Occurred()))
        return NULL;
    if (!(seconds >= 0.001 && seconds <= 3600.0)) {
        PyErr_SetString(PyExc_ValueError, "a heartbeat's interval is 0.001 to 3600 seconds");
        return NULL;
    }
    if (claims->heartbeat.beat_ns) {
        PyErr_SetString(PyExc_RuntimeError, "the heartbeat beats already");
        return NULL;
    }
    claims->heartbeat.beat_ns = &claims->page->beat_ns;
    claims->heartbeat.interval.tv_sec = (time_t)seconds;
    claims->heartbeat.interval.tv_nsec = (long)((seconds - (double)(time_t)seconds) * 1e9);
    int error = mpw_heartbeat_start(&claims->heartbeat);
    if (error) {
        claims->heartbeat.beat_ns = NULL;
        return os_error(error, "start of the heartbeat's thread");
    }
    Py_INCREF(self); /* the thread writes to the page until the process ends */
    return none();
}

static PyMethodDef claims_methods[] = {
    {"offer", (PyCFunction)(void (*)(void))claims_offer, METH_FASTCALL,
     "offer(slot, generation[, task, range])\n\nSupervisor: open the slot for this generation, before its record is pushed. "
     "Where the page has notes, it is noted what is offered."},
    {"send_offer", (PyCFunction)(void (*)(void))claims_send_offer, METH_FASTCALL,
     "send_offer(slot, generation, ring, kind, flags, a, c, payload[, task, range]) -> bool\n\n"
     "Supervisor: open the slot as by offer(), and push its record, whose b is the generation. False: the ring has no room for it now, or "
     "ever, and it is to be sent otherwise; the slot is open."},
    {"claim", (PyCFunction)(void (*)(void))claims_claim, METH_FASTCALL,
     "claim(slot, generation) -> int\n\nChild: take the offer. The monotonic time in ns, or 0: it was revoked."},
    {"revoke", (PyCFunction)(void (*)(void))claims_revoke, METH_FASTCALL,
     "revoke(slot, generation) -> bool\n\nSupervisor: take the offer back. False: the child has claimed it."},
    {"run", (PyCFunction)(void (*)(void))claims_run, METH_FASTCALL,
     "run(slot, generation, call, items, values, first, stop, spread, flush_at_ns) -> bool\n\n"
     "Child: append to values, which begins with that of item first, those of the items that follow, up to stop. True: they "
     "have all been called, or the chunk was halted. False: it is later than flush_at_ns, and there are values. Raises what "
     "a call raises: that of the item which is next then, if inside says so."},
    {"halt", (PyCFunction)(void (*)(void))claims_halt, METH_FASTCALL,
     "halt(slot, generation) -> int\n\nSupervisor: no further item of this chunk (0 takes it back); the cursor since."},
    {"peek", claims_peek, METH_O, "peek(slot) -> (generation, state, started_ns, cursor, halt)"},
    {"beat", claims_beat, METH_NOARGS, "beat() -> int\n\nThe monotonic time of the child's last heartbeat in ns, 0 if none."},
    {"start_heartbeat", claims_start_heartbeat, METH_O,
     "start_heartbeat(interval_s)\n\nChild: start the thread that beats every interval seconds until the process ends."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef claims_getset[] = {
    {"inside", claims_inside, NULL, "Does run() call an item just now, or has the last one raised?", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot claims_slots[] = {
    {Py_tp_doc, "Claims(buffer, slots[, notes])\n\nA child's claim page, and at `notes` bytes from its beginning, if that is "
                 "given, what is offered in each slot; see claims.h."},
    {Py_tp_new, claims_new},
    {Py_tp_dealloc, mapped_dealloc},
    {Py_tp_methods, claims_methods},
    {Py_tp_getset, claims_getset},
    {0, NULL},
};

static PyType_Spec claims_spec = {"mpworker.ipc._native.Claims", sizeof(claims_object), 0,
                                  Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, claims_slots};

#include "submit.h"
#include "tasks.h"

/* ---------------------------------------------------------------- module */

static int module_exec(PyObject *module)
{
    module_state *state = PyModule_GetState(module);
    state->ring_corrupt =
        PyErr_NewExceptionWithDoc("mpworker.ipc._native.RingCorrupt", "A peer wrote an impossible value into a ring.", NULL, NULL);
    state->made_before_fork = PyErr_NewExceptionWithDoc(
        "mpworker.ipc._native.MadeBeforeFork", "A ring, bell or claim page was used in a fork of its owner.", NULL, NULL);
    if (!state->ring_corrupt || PyModule_AddObjectRef(module, "RingCorrupt", state->ring_corrupt) < 0 ||
        !state->made_before_fork || PyModule_AddObjectRef(module, "MadeBeforeFork", state->made_before_fork) < 0)
        return -1;
    struct {
        PyType_Spec *spec;
        PyTypeObject **kept; /* by the state, which has the reference; NULL: by the module alone */
    } types[] = {
        {&ring_spec, &state->ring_type},
        {&bell_spec, &state->bell_type},
        {&claims_spec, &state->claims_type},
        {&attempt_spec, &state->attempt_type},
        {&tasks_spec, NULL},
        {&submit_spec, NULL},
        {&extents_spec, NULL},
        {&loan_spec, NULL},
    };
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        PyObject *type = PyType_FromModuleAndSpec(module, types[i].spec, NULL);
        if (!type || PyModule_AddType(module, (PyTypeObject *)type) < 0)
            return -1;
        if (types[i].kept)
            *types[i].kept = (PyTypeObject *)type;
        else
            Py_DECREF(type);
    }
    static const struct {
        const char *name;
        long value;
    } constants[] = {
        {"RING_CTL_BYTES", sizeof(mpw_ring_ctl)},
        {"RING_MIN_CAPACITY", MPW_RING_MIN_CAPACITY},
        {"RING_MAX_CAPACITY", MPW_RING_MAX_CAPACITY},
        {"RECORD_HEADER_BYTES", sizeof(mpw_record_header)},
        {"BELL_BYTES", sizeof(mpw_bell_word)},
        {"CLAIMS_HEADER_BYTES", sizeof(mpw_claims)},
        {"CLAIM_SLOT_BYTES", sizeof(mpw_slot)},
        {"CLAIM_NOTE_BYTES", sizeof(mpw_entry)},
        {"SUBMIT", MPW_KIND_SUBMIT},
        {"TASK", MPW_KIND_TASK},
        {"DONE", MPW_KIND_DONE},
        {"FREE", MPW_FREE},
        {"OFFERED", MPW_OFFERED},
        {"CLAIMED", MPW_CLAIMED},
        {"REVOKED", MPW_REVOKED},
    };
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++) {
        if (PyModule_AddIntConstant(module, constants[i].name, constants[i].value) < 0)
            return -1;
    }
    static bool counting; /* once a process, however often the module is loaded */
    if (!counting && pthread_atfork(NULL, NULL, count_fork) != 0) {
        PyErr_SetString(PyExc_OSError, "pthread_atfork failed");
        return -1;
    }
    counting = true;
    return 0;
}

static int module_clear(PyObject *module)
{
    module_state *state = PyModule_GetState(module);
    Py_CLEAR(state->ring_corrupt);
    Py_CLEAR(state->made_before_fork);
    Py_CLEAR(state->ring_type);
    Py_CLEAR(state->bell_type);
    Py_CLEAR(state->claims_type);
    Py_CLEAR(state->attempt_type);
    return 0;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    module_state *state = PyModule_GetState(module);
    Py_VISIT(state->ring_corrupt);
    Py_VISIT(state->made_before_fork);
    Py_VISIT(state->ring_type);
    Py_VISIT(state->bell_type);
    Py_VISIT(state->claims_type);
    Py_VISIT(state->attempt_type);
    return 0;
}

static void module_free(void *module)
{
    module_clear(module);
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    "_native",
    "Rings, bells, claims, the heartbeat, arenas and tasks: what needs atomics, must be one step, or happens for each task.",
    sizeof(module_state),
    module_methods,
    module_slots,
    module_traverse,
    module_clear,
    module_free,
};

PyMODINIT_FUNC PyInit__native(void);

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&module_def);
}
