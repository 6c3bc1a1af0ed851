/* mpworker.ipc._native, the part that brings signals to the main thread: for `_native.c` to include.
 *
 * Signals of a process go to any of its threads that does not block them. A library's threads (BLAS, OpenMP) block none, and
 * what Python and faulthandler do in a handler is right in the main thread alone: CPython 3.11 wakes no other from there, and
 * a stack would be that of a thread without Python. So whichever thread it comes to hands it on.
 */
#include <signal.h>
#include <unistd.h>

static void (*signal_handlers[NSIG])(int); /* what is called in the main thread; written before the handler is in place */

static void to_main_thread(int number)
{
    int error = errno;
    pid_t pid = getpid();
    if (gettid() == pid)
        signal_handlers[number](number);
    else
        tgkill(pid, pid, number);
    errno = error;
}

static PyObject *native_to_main_thread(PyObject *Py_UNUSED(module), PyObject *arg)
{
    struct sigaction action;
    long number = PyLong_AsLong(arg);
    if (number == -1 && PyErr_Occurred())
        return NULL;
    if (number < 1 || number >= NSIG || sigaction((int)number, NULL, &action) < 0)
        return PyErr_Format(PyExc_ValueError, "%ld is no signal", number);
    if (action.sa_flags & SA_SIGINFO || action.sa_handler == SIG_DFL || action.sa_handler == SIG_IGN)
        return PyErr_Format(PyExc_ValueError, "signal %ld has no handler that takes its number alone", number);
    if (action.sa_handler == to_main_thread)
        return none();
    signal_handlers[number] = action.sa_handler;
    action.sa_handler = to_main_thread;
    if (sigaction((int)number, &action, NULL) < 0)
        return os_error(errno, "sigaction");
    return none();
}
