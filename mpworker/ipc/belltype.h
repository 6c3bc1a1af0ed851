/* mpworker.ipc._native, the Bell: a side's bell (bell.h) as Python has it: for `_native.c` to include. */

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
