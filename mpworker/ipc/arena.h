/* mpworker.ipc._native, the part that knows of arenas: Extents and Loan, for `_native.c` to include.
 *
 * Extents is thin: extents.h. A Loan is a private mapping of a block of an arena, which it lets arrays view. The owner of
 * the block writes it before the loan is made and does not write it again until the loan is returned; and the loan is
 * writable: what is written is a copy of the page that nobody else sees.
 *
 * A private mapping is not a snapshot: a page that was only read still shows what the owner writes there later. So the
 * block goes back only when the mapping does, or when each of its pages was written ("detached").
 *
 * A loan of a shared object is read-only: many tasks view it, and none may change what the others see.
 *
 * A loan is returned by an entry in a list that somebody looks at, as it may end in any thread, in the middle of anything:
 * to append a number there runs no Python code, and so no signal handler whose exception would be lost.
 */
#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include "extents.h"

/* ---------------------------------------------------------------- Extents */

typedef struct {
    PyObject_HEAD
    mpw_extents extents;
} extents_object;

static PyObject *extents_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    Py_ssize_t capacity;
    static char *names[] = {"", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "n:Extents", names, &capacity))
        return NULL;
    if (capacity < 0)
        return PyErr_Format(PyExc_ValueError, "an arena of %zd bytes", capacity);
    PyObject *self = object_new(type);
    if (self && !mpw_extents_init(&((extents_object *)self)->extents, (uint64_t)capacity)) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return self;
}

static void extents_dealloc(PyObject *self)
{
    mpw_extents_free(&((extents_object *)self)->extents);
    object_free(self);
}

static PyObject *extents_take(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    mpw_extents *extents = &((extents_object *)self)->extents;
    uint64_t size;
    mpw_block block;
    if (!argument_count(nargs, 2, "take") || !get_u64(args[0], &size))
        return NULL;
    if (!PyList_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "take() appends to a list");
        return NULL;
    }
    int taken = mpw_extents_take(extents, size, &block);
    if (taken < 0)
        return PyErr_NoMemory();
    if (taken) {
        PyObject *told = Py_BuildValue("KKK", (unsigned long long)block.number, (unsigned long long)block.offset,
                                       (unsigned long long)block.size);
        bool failed = !told || PyList_Append(args[1], told) < 0;
        Py_XDECREF(told);
        if (failed) {
            mpw_extents_give(extents, block.number);
            return NULL;
        }
    }
    return PyBool_FromLong(taken);
}

static PyObject *extents_give(PyObject *self, PyObject *number)
{
    uint64_t value;
    if (!get_u64(number, &value))
        return NULL;
    return PyBool_FromLong(mpw_extents_give(&((extents_object *)self)->extents, value));
}

static PyObject *extents_taken(PyObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(((extents_object *)self)->extents.taken);
}

static PyObject *extents_largest(PyObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(mpw_extents_largest(&((extents_object *)self)->extents));
}

static PyMethodDef extents_methods[] = {
    {"take", (PyCFunction)(void (*)(void))extents_take, METH_FASTCALL,
     "take(size, into) -> bool\n\nAppend (number, offset, size in whole pages) of a free block to the list; False: there is none."},
    {"give", extents_give, METH_O, "give(number) -> bool\n\nGive a block back; False if it is not taken."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef extents_getset[] = {
    {"taken", extents_taken, NULL, "Bytes of all blocks that are taken.", NULL},
    {"largest", extents_largest, NULL, "Bytes of the largest gap.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot extents_slots[] = {
    {Py_tp_doc, "Extents(capacity)\n\nWhich blocks of an arena are taken; see extents.h."},
    {Py_tp_new, extents_new},
    {Py_tp_dealloc, extents_dealloc},
    {Py_tp_methods, extents_methods},
    {Py_tp_getset, extents_getset},
    {0, NULL},
};

static PyType_Spec extents_spec = {"mpworker.ipc._native.Extents", sizeof(extents_object), 0,
                                   Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, extents_slots};

/* ---------------------------------------------------------------- Loan */

typedef struct loan_object {
    PyObject_HEAD
    struct loan_object *previous, *next; /* of all that are mapped and not detached: under the GIL */
    char *base;
    size_t size;
    PyObject *returns; /* the list that its number goes to, or NULL */
    uint64_t number;
    Py_ssize_t views;
    bool armed, detached, read_only;
} loan_object;

static loan_object loans = {.previous = &loans, .next = &loans};

static void loan_leave(loan_object *loan)
{
    loan->previous->next = loan->next;
    loan->next->previous = loan->previous;
    loan->previous = loan->next = loan;
}

static PyObject *loan_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    int fd;
    Py_ssize_t offset, size;
    PyObject *returns = NULL;
    unsigned long long number = 0;
    int read_only = 0;
    static char *names[] = {"", "", "", "", "", "", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "inn|OKp:Loan", names, &fd, &offset, &size, &returns, &number, &read_only))
        return NULL;
    if (size <= 0 || offset < 0 || offset % MPW_EXTENT_BYTES || size % MPW_EXTENT_BYTES)
        return PyErr_Format(PyExc_ValueError, "a loan of %zd bytes at %zd is not one of whole pages", size, offset);
    if (returns && !PyList_Check(returns)) {
        PyErr_SetString(PyExc_TypeError, "a loan returns to a list");
        return NULL;
    }
    loan_object *loan = (loan_object *)object_new(type);
    if (!loan)
        return NULL;
    loan->previous = loan->next = loan;
    int access = read_only ? PROT_READ : PROT_READ | PROT_WRITE;
    void *base = mmap(NULL, (size_t)size, access, MAP_PRIVATE | MAP_NORESERVE, fd, (off_t)offset);
    if (base == MAP_FAILED) {
        int error = errno;
        Py_DECREF(loan);
        return os_error(error, "mmap of a loan");
    }
    madvise(base, (size_t)size, MADV_DONTDUMP); /* it holds a payload; where it cannot be had, no reason to fail */
    loan->base = base;
    loan->size = (size_t)size;
    loan->number = number;
    loan->read_only = read_only;
    Py_XINCREF(returns);
    loan->returns = returns;
    loan->next = loans.next;
    loan->previous = &loans;
    loan->next->previous = loans.next = loan;
    return (PyObject *)loan;
}

/* Say that the block is not needed any more, once, if anybody is to be told. */
static int loan_return(loan_object *loan)
{
    if (!loan->armed || !loan->returns)
        return 0;
    loan->armed = false;
    PyObject *number = PyLong_FromUnsignedLongLong(loan->number);
    int status = number ? PyList_Append(loan->returns, number) : -1;
    Py_XDECREF(number);
    return status;
}

static void loan_dealloc(PyObject *self)
{
    loan_object *loan = (loan_object *)self;
    PyObject *kind, *value, *trace;
    PyErr_Fetch(&kind, &value, &trace);
    loan_leave(loan);
    if (loan->base)
        munmap(loan->base, loan->size);
    if (loan_return(loan) < 0)
        PyErr_Clear(); /* without memory for a number the block is lost until the pool ends */
    Py_XDECREF(loan->returns);
    PyErr_Restore(kind, value, trace);
    object_free(self);
}

/* Put a copy in the place of a loan that nobody writes meanwhile: then nothing keeps the arena's file, either. */
static bool loan_replace(loan_object *loan)
{
    void *copy = mmap(NULL, loan->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (copy == MAP_FAILED)
        return false;
    memcpy(copy, loan->base, loan->size);
    madvise(copy, loan->size, MADV_DONTDUMP);
    if ((!loan->read_only || mprotect(copy, loan->size, PROT_READ) == 0) &&
        mremap(copy, loan->size, loan->size, MREMAP_MAYMOVE | MREMAP_FIXED, loan->base) != MAP_FAILED)
        return true;
    int error = errno;
    munmap(copy, loan->size);
    errno = error;
    return false;
}

/* Make each page a copy of its own; -1 with an exception if there is no memory for that.
 *
 * What may be written meanwhile, by another thread, keeps its mapping: a write between the copy and its putting in place
 * would be lost. */
static int loan_touch(loan_object *loan, bool alone)
{
    if (loan->detached)
        return 0;
    bool replaced = (alone || loan->read_only || !loan->views) && loan_replace(loan);
    if (loan->read_only && !replaced) {
        os_error(errno, "mmap of a copy");
        return -1;
    }
    for (size_t at = 0; !replaced && at < loan->size; at += MPW_EXTENT_BYTES) {
        volatile char *page = loan->base + at;
        *page = *page;
    }
    loan->detached = true;
    loan_leave(loan);
    return 0;
}

static PyObject *loan_detach(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    loan_object *loan = (loan_object *)self;
    return loan_touch(loan, false) < 0 || loan_return(loan) < 0 ? NULL : none();
}

static PyObject *loan_arm(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    loan_object *loan = (loan_object *)self;
    loan->armed = !loan->detached;
    return none();
}

/* Bits of an entry of /proc/PID/pagemap: Documentation/admin-guide/mm/pagemap.rst. */
#define PAGE_PRESENT (UINT64_C(1) << 63)
#define PAGE_SWAPPED (UINT64_C(1) << 62)
#define PAGE_SHARED (UINT64_C(1) << 61) /* of a file, or shared: not copied by a write */

/* Was no page of this written? False also where that cannot be known. */
static bool unwritten(const char *start, size_t size)
{
    uint64_t entries[1024];
    uint64_t page = (uint64_t)(uintptr_t)start / MPW_EXTENT_BYTES;
    uint64_t end = ((uint64_t)(uintptr_t)start + size - 1) / MPW_EXTENT_BYTES + 1;
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    bool so = fd >= 0;
    while (so && page < end) {
        size_t count = end - page < 1024 ? (size_t)(end - page) : 1024;
        so = pread(fd, entries, count * sizeof *entries, (off_t)(page * sizeof *entries)) == (ssize_t)(count * sizeof *entries);
        for (size_t i = 0; so && i < count; i++)
            so = !(entries[i] & (PAGE_PRESENT | PAGE_SWAPPED)) || (entries[i] & PAGE_SHARED);
        page += count;
    }
    if (fd >= 0)
        close(fd);
    return so;
}

static PyObject *loan_locate(PyObject *self, PyObject *buffer)
{
    loan_object *loan = (loan_object *)self;
    Py_buffer view;
    if (PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    uintptr_t start = (uintptr_t)view.buf, base = (uintptr_t)loan->base;
    Py_ssize_t at = -1;
    if (!loan->detached && view.len > 0 && start >= base && (size_t)view.len <= loan->size &&
        start - base <= loan->size - (size_t)view.len && unwritten(view.buf, (size_t)view.len))
        at = (Py_ssize_t)(start - base);
    PyBuffer_Release(&view);
    return PyLong_FromSsize_t(at);
}

static int loan_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
    loan_object *loan = (loan_object *)self;
    int status = PyBuffer_FillInfo(view, self, loan->base, (Py_ssize_t)loan->size, loan->read_only, flags);
    loan->views += status == 0;
    return status;
}

static void loan_releasebuffer(PyObject *self, Py_buffer *Py_UNUSED(view))
{
    ((loan_object *)self)->views--;
}

static PyObject *loan_views(PyObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromSsize_t(((loan_object *)self)->views);
}

static PyMethodDef loan_methods[] = {
    {"arm", loan_arm, METH_NOARGS, "arm()\n\nFrom now on the loan's number is appended to the list when the loan ends."},
    {"detach", loan_detach, METH_NOARGS,
     "detach()\n\nMake each page a copy of its own, and return the loan: what views it is not the arena's any more."},
    {"locate", loan_locate, METH_O,
     "locate(buffer) -> int\n\nWhere in the loan the buffer begins; -1 if it is not in it, or a page of it may be written."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef loan_getset[] = {
    {"views", loan_views, NULL, "How many buffers view it.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot loan_slots[] = {
    {Py_tp_doc, "Loan(fd, offset, size, returns=..., number=0, read_only=False)\n\nA private view of a block of an arena; see arena.h."},
    {Py_tp_new, loan_new},
    {Py_tp_dealloc, loan_dealloc},
    {Py_tp_methods, loan_methods},
    {Py_tp_getset, loan_getset},
    {Py_bf_getbuffer, loan_getbuffer},
    {Py_bf_releasebuffer, loan_releasebuffer},
    {0, NULL},
};

static PyType_Spec loan_spec = {"mpworker.ipc._native.Loan", sizeof(loan_object), 0,
                                Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, loan_slots};

static PyObject *native_detach_all(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs > 2)
        return PyErr_Format(PyExc_TypeError, "detach_all() takes at most 2 arguments (%zd given)", nargs);
    int alone = nargs > 1 ? PyObject_IsTrue(args[1]) : 0;
    if (alone < 0)
        return NULL;
    loan_object *next = loans.next;
    while (next != &loans) {
        loan_object *loan = next;
        next = loan->next;
        if (nargs && loan->returns != args[0])
            continue;
        if (loan->read_only && !loan->views)
            continue; /* a shared object that nobody has opened: nobody sees what it becomes */
        if (loan_touch(loan, alone) < 0 /* which takes it out of the list */ || loan_return(loan) < 0)
            return NULL;
    }
    return none();
}
