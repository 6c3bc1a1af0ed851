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
    {"to_main_thread", native_to_main_thread, METH_VARARGS,
     "to_main_thread(number, fd=-1, start=0)\n\nHave the handler that this signal has run in the main thread, whichever thread "
     "the signal comes to; with a descriptor, after this has been set back to its start."},
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

#include "ringtype.h"
#include "belltype.h"
#include "claimstype.h"
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
